"""Two steps that err in opposite ways: their mixture is the data, and only a score that is told the step sees it."""

import pytest
import torch
from torch import Tensor, nn

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Batch
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.process import Flow, Prediction, even_grid
from fastgen.proofs.analytic import ExactDenoiser, Mixture

PROCESS, GRID, COUNT = Flow(), even_grid(2), 2048
DATA = Mixture(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), 0.04 * torch.eye(2).expand(2, 2, 2), labels=torch.arange(2))


class HalfEach(nn.Module):
    """Lands from its first step on one half of the data, from its second on the other, each moved by its shift."""

    scalars = ()
    process = PROCESS

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))

    def forward(self, x_t, t, cond, scalars=None):
        step = (t < 0.75).long()
        spread = 0.2 * torch.randn(x_t.shape, generator=torch.Generator().manual_seed(len(x_t)))
        x0 = (DATA.means[step] + spread + self.shift[step]).to(x_t)
        level = t[:, None].to(x_t)
        return Prediction(PROCESS, t, x0, (x_t - (1 - level) * x0) / level)


class Told(ExactDenoiser):
    """The exact score of what the generator lands on from the step that it is told."""

    scalars = ("called",)

    def forward(self, x_t, t, cond, scalars=None):
        step = (scalars["called"] < 0.75).long()
        return super().forward(x_t, t, DATA.cond(step))


def shifts(step_aware: bool) -> Tensor:
    """The gradient of the two steps' shifts [2 steps, 2]."""
    generator, real = HalfEach(), ExactDenoiser(PROCESS, DATA)
    fake = (Told if step_aware else ExactDenoiser)(PROCESS, DATA)
    roles = Roles({"generator": generator, "real_score": real, "fake_score": fake}, Plan([GRID]))
    objective = DMD2(gan=GAN(0.0), step_aware=step_aware)
    with roles.training(("generator",)):
        for seed in range(8):
            streams = (torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed))
            terms = objective.generator(roles, Batch(DATA.uncond(COUNT), (2,), *streams))
            torch.stack(list(terms.values())).sum().backward()
    return generator.shift.grad


@pytest.mark.parametrize("step_aware", [True, False])
def test_errors_that_cancel_are_seen_by_a_score_that_is_told_the_step(step_aware):
    found = shifts(step_aware)
    if step_aware:
        assert found[0, 0] > 0.05, "each is drawn to the other half"
        assert found[1, 0] < -0.05
    else:
        torch.testing.assert_close(found, torch.zeros_like(found), rtol=0, atol=1e-6)
