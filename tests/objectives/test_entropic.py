"""ESD: between exact densities, the divergence of each condition less the mutual information of all."""

import pytest
import torch
from closed_forms import ScriptedBatch, close, only, quasi_random, streams
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives.distribution.vsd import VSD
from fastgen.objectives.parts.guidance_laws import Entropic, Fixed, GuidanceLaw, Scales
from fastgen.process import Flow, Prediction, even_grid
from fastgen.proofs.analytic import ExactDenoiser, Mixture

T = 0.4
OURS, THEIRS = torch.tensor([0.2, 1.0], dtype=torch.float64), torch.tensor([-0.5, 1.4], dtype=torch.float64)
SPREAD = torch.tensor([0.6, 0.8], dtype=torch.float64)
"""Means of the two classes here and in the data, and the deviation in either."""


class ClassMeans(nn.Module):
    """Samples around a mean of each class."""

    scalars: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.process, self.means = Flow(), nn.Parameter(OURS.clone())

    def forward(self, x_t, t, cond, scalars=None):
        x0 = self.means[cond.batched["class_labels"]][:, None] + SPREAD[0] * x_t
        return Prediction.of_x0(self.process, x_t, t, x0)


def denoiser(means: Tensor, spread: Tensor) -> ExactDenoiser:
    variances = spread.square().reshape(1, 1, 1).expand(2, 1, 1)
    return ExactDenoiser(Flow(), Mixture(means[:, None], variances, labels=torch.arange(2)))


def slope(guidance: GuidanceLaw) -> Tensor:
    """Of the generator's loss by its two means."""
    generator = ClassMeans()
    members = {
        "generator": generator,
        "fake_score": denoiser(OURS, SPREAD[0]),
        "real_score": denoiser(THEIRS, SPREAD[1]),
    }
    z, eps = (torch.cat([x, x]) for x in quasi_random(1, 4096))
    labels = torch.arange(2).repeat_interleave(4096)
    cond = members["fake_score"].data.cond(labels)
    batch = ScriptedBatch(cond, (1,), **streams(), script=[z, eps])
    roles = Roles(members, Plan([even_grid(1)]))
    with roles.training(("generator",)):
        loss = VSD(weight="kl", guidance=guidance, times=only(T), rollout="one_step").generator(roles, batch)["dm"]
        (found,) = torch.autograd.grad(loss, generator.means)
    return found


def entropic(means: Tensor, entropy: float) -> Tensor:
    """Mean KL(q_c | p_c) - entropy I(sample; class) at T, by sums over a fine grid."""
    alpha, sigma = 1 - T, T
    spreads = (alpha**2 * SPREAD**2 + sigma**2).sqrt()
    ours, theirs = Normal(alpha * means, spreads[0]), Normal(alpha * THEIRS, spreads[1])
    x = torch.linspace(-6, 8, 20001, dtype=torch.float64)
    logs = ours.log_prob(x[:, None])
    mixed = logs.logsumexp(dim=1) - torch.tensor(2.0).log()
    information = (logs.exp() * (logs - mixed[:, None])).sum(dim=0).mean() * (x[1] - x[0])
    return kl_divergence(ours, theirs).mean() - entropy * information


@pytest.mark.parametrize("entropy", [0.0, 0.4, 1.0])
def test_it_is_the_divergence_less_the_mutual_information(entropy: float):
    means = OURS.clone().requires_grad_()
    (expected,) = torch.autograd.grad(entropic(means, entropy), means)
    close(slope(Entropic(1.0, entropy)), expected, tolerance=2e-3)


def test_more_of_it_drives_the_conditions_apart():
    less, more = (slope(Entropic(1.0, entropy)) for entropy in (0.1, 0.9))
    assert (more - less) @ (OURS - OURS.mean()) < 0, "descent leads away from the middle"


def test_without_it_the_law_is_the_fixed_one():
    close(slope(Entropic(3.0, 0.0)), slope(Fixed(3.0)))
    assert Entropic(3.0, 0.25).drawn(torch.Generator()) == Scales(3.0, 0.75, 1.0)
    with pytest.raises(ValueError, match="lies in"):
        Entropic(1.0, 1.5)
