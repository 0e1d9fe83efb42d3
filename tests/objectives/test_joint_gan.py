"""An adversary that looks where the scores look, and the weight that its term has."""

from collections.abc import Callable

import pytest
import torch
from closed_forms import REAL, gaussian_roles, only, scripted
from torch import Tensor, nn
from torch.nn.functional import softplus

from fastgen.objectives import Objective
from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.sana_sprint import SanaSprint
from fastgen.process import Flow
from fastgen.proofs.analytic import ExactDenoiser


class Watcher(nn.Module):
    """A linear discriminator, and beside it a score, that remember the noisy samples they are shown."""

    def __init__(self) -> None:
        super().__init__()
        self.judged: list[Tensor] = []
        self.scored: list[Tensor] = []
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
        self.score = ExactDenoiser(Flow(), REAL)
        self.score.register_forward_pre_hook(lambda _, given: self.scored.append(given[0].detach()))

    def forward(self, x_t: Tensor, t: Tensor, cond: object) -> Tensor:
        self.judged.append(x_t.detach())
        return (x_t @ self.weight)[:, None]


def drawn(count: int) -> Tensor:
    return torch.randn(count, 64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("paired", [False, True])
def test_a_joint_adversary_looks_where_the_scores_look(paired: bool):
    """In both turns at the very samples of the fake score; real ones at their times, in pairs with their noises."""
    objective = SiD(gan=GAN(joint=True, paired=paired), times=only(0.6), fake_times=only(0.3), fake_space="eps")
    watcher, (real, *noises) = Watcher(), drawn(7)
    roles = gaussian_roles(Flow(), discriminator=watcher, fake_score=watcher.score)
    objective.generator(roles, scripted(*noises[:3], real=real))
    assert torch.equal(watcher.judged[0], watcher.scored[0])
    batch = scripted(*noises[3:], real=real)
    objective.fake_score(roles, batch)
    shown, fake = watcher.judged[1].chunk(2)
    assert torch.equal(fake, watcher.scored[1])
    true, made = ((x - 0.7 * x0) / 0.3 for x, x0 in ((shown, real), (fake, batch.landing.x0)))
    assert torch.allclose(true, made, atol=1e-6) == paired
    assert abs(float(true.std()) - 1) < 0.2, "real samples are seen at the fake score's times"


@pytest.mark.parametrize(
    ("build", "rule"),
    [
        (lambda: GAN(joint=True, times=only(0.5)), "gan.times is .*, but gan.joint is true"),
        (lambda: PhasedConsistency(gan=GAN(0.1, joint=True, kind="hinge")), "two scores are compared"),
        (lambda: SanaSprint(gan=GAN(0.5, joint=True, kind="hinge")), "two scores are compared"),
    ],
    ids=["times", "pcm", "sana_sprint"],
)
def test_a_joint_adversary_is_refused_where_it_cannot_look(build: Callable[[], Objective | GAN], rule: str):
    with pytest.raises(ValueError, match=rule):
        build()


def test_an_even_adversary_weighs_every_sample_as_their_mean():
    """Of SiD's weights 1 / mean|x0 - real|; otherwise each sample's own."""
    found = []
    for even in (True, False):
        watcher, noises = Watcher(), drawn(3)
        roles, batch = gaussian_roles(Flow(), discriminator=watcher), scripted(*noises)
        term = SiD(gan=GAN(1.0, joint=True, even=even), times=only(0.6)).generator(roles, batch)["gan"]
        real = watcher.score(watcher.judged[0], batch.full(0.6), batch.cond).x0
        weight = 1 / (batch.landing.x0 - real).abs().mean(dim=1)
        loss = softplus(-watcher(watcher.judged[0], batch.full(0.6), None))[:, 0]
        torch.testing.assert_close(term, ((weight.mean() if even else weight) * loss).mean(), rtol=1e-6, atol=0)
        found.append(float(term))
    assert found[0] != pytest.approx(found[1], rel=1e-2)
