"""Matching of noisy samples at the ends of segments, against analytic densities."""

from dataclasses import replace

import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    believed,
    close,
    cubature,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
)
from directions import UNIT, level, per_sample
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from fastgen.models.calls import NONE, Scalars
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Objective
from fastgen.objectives.distribution.phased_dmd import PhasedDMD
from fastgen.objectives.distribution.tdm import TDM
from fastgen.process import Prediction, Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture

HALF = torch.tensor([1.0, 0.5], dtype=torch.float64)


class Listener(nn.Module):
    """A denoiser that remembers what it is told."""

    def __init__(self, inner: nn.Module, *scalars: str) -> None:
        super().__init__()
        self.inner, self.process, self.scalars = inner, inner.process, scalars
        self.guide, self.tap = inner.guide, inner.tap
        self.told: list[dict[str, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: object, scalars: Scalars = NONE) -> Prediction:
        self.told.append(dict(scalars))
        return self.inner(x_t, t, cond)


def first_segment(roles: Roles, objective: Objective, *script: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Slopes of a rollout that ended after its first step, and the time where it ended."""
    for seed in range(20):
        batch = scripted(*script, seed=seed)
        measured = slopes(roles, objective, batch, "dm")
        if torch.equal(batch.landing.t, batch.full(roles.plan.grids[0][0])):
            return measured, batch.landing.landed[0]
    raise AssertionError("no rollout ended after its first step")


def segment_map(process: Process, mean: Tensor, factor: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """x_s = offset + matrix z: the deterministic step of x0 = mean + factor z from time 1 to s."""
    one = level(1.0)
    alpha, sigma, start = process.alpha(one), process.sigma(one), process.prior(torch.ones(1, 1), one[None]).item()
    offset = process.alpha(s) * mean - process.sigma(s) / sigma * alpha * mean
    matrix = process.alpha(s) * factor + process.sigma(s) / sigma * (start * UNIT - alpha * factor)
    return offset, matrix


def segment_roles(process: Process, *heard: str) -> Roles:
    """Two deterministic steps; the fake score is that of the samples at the end of the first."""
    offset, matrix = segment_map(process, OTHER_MEAN, OTHER_FACTOR, HALF[1])
    alpha, sigma = process.alpha(HALF[1]), process.sigma(HALF[1])
    law = Mixture((offset / alpha)[None], ((matrix @ matrix.T - sigma**2 * UNIT) / alpha**2)[None])
    roles = gaussian_roles(process, fake_score=Listener(ExactDenoiser(process, law), *heard))
    roles.plan = Plan([HALF], "ode")
    return roles


def segment_gap(process: Process, z: Tensor, eps: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """fake - real in the middle of the times above s, and the same over mean|x0 - real|."""
    offset, matrix = segment_map(process, OTHER_MEAN, OTHER_FACTOR, s)
    x0, t = OTHER_MEAN + z @ OTHER_FACTOR.T, (1 + s) / 2
    alpha, sigma, scale = process.alpha(t), process.sigma(t), process.alpha(t) / process.alpha(s)
    x_t = scale * (offset + z @ matrix.T) + (sigma**2 - (scale * process.sigma(s)) ** 2).sqrt() * eps
    covariance = (matrix @ matrix.T - process.sigma(s) ** 2 * UNIT) / process.alpha(s) ** 2
    real = believed(MEAN, COVARIANCE, x_t, alpha, sigma)
    gap = believed(offset / process.alpha(s), covariance, x_t, alpha, sigma) - real
    return gap, gap / ((x0 - real).abs().sum(dim=1, keepdim=True) / 2)


def check_tdm_direction(process: Process, huber: float = 0.0) -> None:
    z, eps = quasi_random(2)
    roles = segment_roles(process, "called", "landed")
    measured, s = first_segment(roles, TDM(times=only(0.5), huber=huber), z, eps)
    gap, grad = segment_gap(process, z, eps, s)
    close(measured, per_sample(grad / (gap**2 + huber**2).sqrt() if huber else grad, z))
    told = roles["fake_score"].told[-1]
    assert set(told["called"].tolist()) == {1.0}
    assert set(told["landed"].tolist()) == {0.5}


def check_phased_is_the_kl_gradient(process: Process) -> None:
    roles = segment_roles(process, "landed")
    measured, s = first_segment(roles, PhasedDMD(weight="kl", times=only(0.5)), *cubature(2))
    assert s == 0.5
    t = (1 + s) / 2
    alpha, sigma, scale = process.alpha(t), process.sigma(t), process.alpha(t) / process.alpha(s)
    mean, factor = OTHER_MEAN.clone().requires_grad_(), OTHER_FACTOR.clone().requires_grad_()
    offset, matrix = segment_map(process, mean, factor, s)
    added = sigma**2 - (scale * process.sigma(s)) ** 2
    fake = MultivariateNormal(scale * offset, scale**2 * matrix @ matrix.T + added * UNIT)
    real = MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * UNIT)
    exact = torch.autograd.grad(kl_divergence(fake, real), [mean, factor])
    close(measured, tuple(slope / 2 for slope in exact))
    assert set(roles["fake_score"].told[-1]) == {"landed"}


def check_kl_weight(process: Process, objective: Objective) -> None:
    """alpha^2 / sigma^2 (fake - real) is the gradient of KL(q_t | p_t)."""
    roles = gaussian_roles(process)
    roles.plan = replace(roles.plan, sampler="ode")
    measured = slopes(roles, objective, scripted(*cubature(2)), "dm")
    alpha, sigma = process.alpha(level(0.5)), process.sigma(level(0.5))
    mean, factor = OTHER_MEAN.clone().requires_grad_(), OTHER_FACTOR.clone().requires_grad_()
    fake = MultivariateNormal(alpha * mean, alpha**2 * factor @ factor.T + sigma**2 * UNIT)
    real = MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * UNIT)
    close(measured, tuple(slope / 2 for slope in torch.autograd.grad(kl_divergence(fake, real), [mean, factor])))


def check_phase_normaliser(process: Process) -> None:
    """1 / mean|x0 - real| of the clean prediction, on the clean prediction, whatever sample ends the phase."""
    z, eps = quasi_random(2)
    measured, s = first_segment(segment_roles(process, "landed"), PhasedDMD(times=only(0.5)), z, eps)
    _, grad = segment_gap(process, z, eps, s)
    close(measured, per_sample(grad, z))
