"""Matching of noisy samples at the ends of segments: TDM, Phased DMD and DMD2 along a trajectory."""

from dataclasses import replace
from functools import partial

import pytest
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
    processes,
    quasi_random,
    scripted,
    slopes,
)
from test_directions import UNIT, level, per_sample
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

from fastgen.models.calls import NONE, Scalars
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Objective, Pair
from fastgen.objectives.distribution.decoupled_dmd import DecoupledDMD
from fastgen.objectives.distribution.dmd import DMD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.phased_dmd import PhasedDMD
from fastgen.objectives.distribution.tdm import TDM
from fastgen.objectives.parts.gan import GAN
from fastgen.process import ROWS, Flow, Prediction, Process
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


# TDM


def first_segment(roles: Roles, objective: Objective, *script: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Slopes of a rollout that ended after its first step, and the time where it ended."""
    for seed in range(20):
        batch = scripted(*script, seed=seed)
        measured = slopes(roles, objective, batch, "dm")
        if torch.equal(batch.landing.t, batch.full(roles.student.grids[0][0])):
            return measured, batch.landing.s[0]
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
    roles.student = Plan([HALF], "ode")
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


@processes
@pytest.mark.parametrize("huber", [0.0, 0.3])
def test_tdm_matches_the_end_of_a_segment(process: Process, huber: float):
    check_tdm_direction(process, huber)


@processes
def test_tdm_in_one_step_is_dmd(process: Process):
    measured = []
    for objective, sampler in ((TDM(times=only(0.5)), "ode"), (DMD(times=only(0.5)), "renoise")):
        z, eps = quasi_random(2, 64)
        roles, batch = gaussian_roles(process), scripted(z, eps)
        roles.student, batch.pairs = replace(roles.student, sampler=sampler), Pair(z, z)
        measured.append(slopes(roles, objective, batch, "dm"))
    close(*measured)


def test_tdm_teaches_the_fake_score_of_each_segment_by_its_times():
    roles = segment_roles(Flow(), "called", "landed")
    for seed in range(6):
        TDM().fake_score(roles, scripted(*quasi_random(2, 8), seed=seed))
    heard = {(told["called"][0].item(), told["landed"][0].item()) for told in roles["fake_score"].told}
    assert heard == {(1.0, 0.5), (0.5, 0.0)}


# Phased DMD


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


@processes
def test_phased_dmd_is_the_kl_gradient_of_the_noisy_sample(process: Process):
    check_phased_is_the_kl_gradient(process)


def check_kl_weight(process: Process, objective: Objective) -> None:
    """alpha^2 / sigma^2 (fake - real) is the gradient of KL(q_t | p_t)."""
    roles = gaussian_roles(process)
    roles.student = replace(roles.student, sampler="ode")
    measured = slopes(roles, objective, scripted(*cubature(2)), "dm")
    alpha, sigma = process.alpha(level(0.5)), process.sigma(level(0.5))
    mean, factor = OTHER_MEAN.clone().requires_grad_(), OTHER_FACTOR.clone().requires_grad_()
    fake = MultivariateNormal(alpha * mean, alpha**2 * factor @ factor.T + sigma**2 * UNIT)
    real = MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + sigma**2 * UNIT)
    close(measured, tuple(slope / 2 for slope in torch.autograd.grad(kl_divergence(fake, real), [mean, factor])))


@processes
@pytest.mark.parametrize(
    "objective",
    [PhasedDMD(phases=1, weight="kl", times=only(0.5)), DecoupledDMD(augmentation=1.0, weight="kl", times=only(0.5))],
    ids=["one phase", "decoupled"],
)
def test_of_clean_samples_the_kl_weight_is_the_kl_gradient(process: Process, objective: Objective):
    check_kl_weight(process, objective)


@processes
def test_the_velocity_form_of_phased_dmd_is_the_kl_weight(process: Process):
    """alpha scale / (alpha sigma + sigma^2) (v_real - v_fake) = alpha scale / sigma^2 (fake - real)."""
    t, (x_t, fake, real) = torch.full((8,), 0.7, dtype=torch.float64), torch.randn(3, 8, 2, dtype=torch.float64)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    v_real, v_fake = (Prediction.of_x0(process, x_t, t, x0).output(ROWS["difference"]) for x0 in (real, fake))
    close(alpha / (alpha * sigma + sigma**2) * (v_real - v_fake), alpha / sigma**2 * (fake - real))


def check_phase_normaliser(process: Process) -> None:
    """1 / mean|x0 - real| of the clean prediction, on the clean prediction, whatever sample ends the phase."""
    z, eps = quasi_random(2)
    measured, s = first_segment(segment_roles(process, "landed"), PhasedDMD(times=only(0.5)), z, eps)
    _, grad = segment_gap(process, z, eps, s)
    close(measured, per_sample(grad, z))


@processes
def test_a_phase_is_normalised_by_its_clean_prediction(process: Process):
    check_phase_normaliser(process)


def test_a_normaliser_is_bounded_from_below():
    """By a floor above all the means the direction is divided by the floor alone."""
    z, eps = quasi_random(2, 64)
    for kind in (PhasedDMD, partial(DecoupledDMD, augmentation=1.0)):
        roles = gaussian_roles(Flow())
        roles.student = replace(roles.student, sampler="ode")
        settings = {"times": only(0.5)} | ({"phases": 1} if kind is PhasedDMD else {})
        bounded = slopes(roles, kind(floor=100.0, **settings), scripted(z, eps), "dm")
        plain = slopes(roles, kind(weight="none", **settings), scripted(z, eps), "dm")
        close(tuple(100 * slope for slope in bounded), plain)


def taught_at(objective: PhasedDMD) -> Tensor:
    """The fake score's loss on the end of the first segment."""
    for seed in range(20):
        batch = scripted(*quasi_random(2, 64), seed=seed)
        loss = objective.fake_score(segment_roles(Flow(), "landed"), batch)["denoise"]
        if batch.landing.s.any():
            return loss
    raise AssertionError("no rollout ended after its first step")


def test_a_phase_teaches_its_fake_score_evenly_or_by_what_is_known():
    """(sigma_{t|s} / sigma_t)^2 of a flow at s = 1/2 and t = 3/4, where sigma_{t|s}^2 = 9/16 - 1/16: 8 / 9."""
    even, known = (taught_at(PhasedDMD(fake_times=only(0.5), even=even)) for even in (True, False))
    assert float(known / even) == pytest.approx(8 / 9, rel=1e-6)


# DMD2 along a trajectory


@processes
def test_dmd2_matches_trajectories_at_their_ends(process: Process):
    """Its direction there is TDM's: only what the fake score is told differs."""
    ends = []
    for objective in (DMD2(gan=GAN(0.0), rollout="trajectory", times=only(0.5)), TDM(times=only(0.5))):
        measured, s = first_segment(segment_roles(process), objective, *quasi_random(2, 64))
        assert s == 0.5
        ends.append(measured)
    close(*ends)
