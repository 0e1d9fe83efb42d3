"""SMD against the skew Jensen-Shannon divergence by quadrature, and its discriminator against the exact ratio."""

from dataclasses import replace

import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    REAL,
    close,
    cubature,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
)
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.smd import ScoreOfMixture
from fastgen.objectives.parts.gan import NO_GAN
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactRatio

SHARE, T = 0.7, 0.5
AT = ScoreOfMixture(weight="kl", times=only(T), fake_times=only(T), shares=(SHARE, SHARE))


class Biased(nn.Module):
    """The exact ratio, and a bias of it that can be trained."""

    def __init__(self, exact: ExactRatio, bias: float) -> None:
        super().__init__()
        self.exact, self.bias = exact, nn.Parameter(torch.tensor(bias, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.exact(x_t, t, cond) + self.bias


def judged(process: Process, *, bias: float = 0.0) -> Roles:
    roles = gaussian_roles(process)
    ratio = Biased(ExactRatio(roles["real_score"], roles["fake_score"]), bias)
    return Roles({**roles.members, "discriminator": ratio}, roles.plan)


def check_skew_divergence(process: Process) -> None:
    """The gradient of [a KL(p | m) + (1 - a) KL(q | m)] / (a (1 - a)) between the noisy laws, on a grid."""
    z, eps = quasi_random(2, 8192)
    measured = slopes(judged(process), AT, scripted(z, eps), "dm")
    level = torch.tensor(T, dtype=torch.float64)
    alpha, sigma = process.alpha(level), process.sigma(level)
    mean, factor = OTHER_MEAN.clone().requires_grad_(), OTHER_FACTOR.clone().requires_grad_()
    unit = sigma**2 * torch.eye(2, dtype=torch.float64)
    real = MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + unit)
    fake = MultivariateNormal(alpha * mean, alpha**2 * factor @ factor.T + unit)
    axis = 8 * (alpha + sigma) * torch.linspace(-1, 1, 401, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis)
    p, q = real.log_prob(points).exp(), fake.log_prob(points).exp()
    mixed = SHARE * p + (1 - SHARE) * q
    parts = SHARE * p * (p / mixed).clamp(min=1e-300).log() + (1 - SHARE) * q * (q / mixed).clamp(min=1e-300).log()
    divergence = parts.nan_to_num().sum() * (axis[1] - axis[0]) ** 2 / (SHARE * (1 - SHARE))
    exact = torch.autograd.grad(divergence, [mean, factor])
    close(measured, tuple(slope / 2 for slope in exact), tolerance=2e-3)


def check_all_of_the_data_is_dmd2() -> None:
    z, eps = cubature(2)
    alone = replace(AT, shares=(1.0, 1.0))
    plain = DMD2(weight="kl", gan=NO_GAN, times=only(T), rollout="one_step")
    close(slopes(judged(Flow()), alone, scripted(z, eps), "dm"), slopes(judged(Flow()), plain, scripted(z, eps), "dm"))


def head_slope(process: Process, bias: float) -> float:
    """Of the discriminator's loss by a bias of the logit."""
    roles, (z, eps) = judged(process, bias=bias), quasi_random(2, 16_000)
    batch = scripted(z, eps, real=REAL.sample(16_000, torch.Generator().manual_seed(0)))
    with roles.training(("discriminator",)):
        loss = AT.fake_score(roles, batch)["gan"]
        (slope,) = torch.autograd.grad(loss, [roles["discriminator"].bias])
    return float(slope)


def check_the_exact_ratio_is_the_least(process: Process) -> None:
    low, exact, high = (head_slope(process, bias) for bias in (-0.5, 0.0, 0.5))
    assert abs(exact) < 0.03 * min(-low, high)
