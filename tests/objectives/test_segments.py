"""Matching of noisy samples at the ends of segments: TDM, Phased DMD and DMD2 along a trajectory."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from closed_forms import close, gaussian_roles, only, processes, quasi_random, scripted, slopes
from segments import (
    check_kl_weight,
    check_phase_normaliser,
    check_phased_is_the_kl_gradient,
    check_tdm_direction,
    first_segment,
    segment_roles,
)
from torch import Tensor

from fastgen.objectives import Objective, Pair
from fastgen.objectives.distribution.decoupled_dmd import DecoupledDMD
from fastgen.objectives.distribution.dmd import DMD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.phased_dmd import PhasedDMD
from fastgen.objectives.distribution.tdm import TDM
from fastgen.objectives.parts.gan import GAN
from fastgen.process import ROWS, Flow, Prediction, Process

# TDM


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
        roles.plan, batch.pairs = replace(roles.plan, sampler=sampler), Pair(z, z)
        measured.append(slopes(roles, objective, batch, "dm"))
    close(*measured)


def test_tdm_teaches_the_fake_score_of_each_segment_by_its_times():
    roles = segment_roles(Flow(), "called", "landed")
    for seed in range(6):
        TDM().fake_score(roles, scripted(*quasi_random(2, 8), seed=seed))
    heard = {(told["called"][0].item(), told["landed"][0].item()) for told in roles["fake_score"].told}
    assert heard == {(1.0, 0.5), (0.5, 0.0)}


# Phased DMD


@processes
def test_phased_dmd_is_the_kl_gradient_of_the_noisy_sample(process: Process):
    check_phased_is_the_kl_gradient(process)


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


@processes
def test_a_phase_is_normalised_by_its_clean_prediction(process: Process):
    check_phase_normaliser(process)


def test_a_normaliser_is_bounded_from_below():
    """By a floor above all the means the direction is divided by the floor alone."""
    z, eps = quasi_random(2, 64)
    for kind in (PhasedDMD, partial(DecoupledDMD, augmentation=1.0)):
        roles = gaussian_roles(Flow())
        roles.plan = replace(roles.plan, sampler="ode")
        settings = {"times": only(0.5)} | ({"phases": 1} if kind is PhasedDMD else {})
        bounded = slopes(roles, kind(floor=100.0, **settings), scripted(z, eps), "dm")
        plain = slopes(roles, kind(weight="none", **settings), scripted(z, eps), "dm")
        close(tuple(100 * slope for slope in bounded), plain)


def taught_at(objective: PhasedDMD) -> Tensor:
    """The fake score's loss on the end of the first segment."""
    for seed in range(20):
        batch = scripted(*quasi_random(2, 64), seed=seed)
        loss = objective.fake_score(segment_roles(Flow(), "landed"), batch)["denoise"]
        if batch.landing.landed.any():
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
