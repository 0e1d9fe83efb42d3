"""f-divergences, and the objectives that weigh by the ratio of densities, against quadrature and plain algebra."""

import pytest
import torch
from closed_forms import REAL, close, processes, quasi_random, scripted, slopes, streams
from divergences import (
    NAMES,
    RATIOS,
    T,
    check_direction_is_the_divergences_gradient,
    check_f_distill,
    check_ratio_means,
    check_weight_is_the_second_derivative,
    judged,
    weighed,
)
from quadrature import LINE, marginals

from fastgen.objectives import Batch, Objective
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.parts.divergences import DIVERGENCES, DivergenceName
from fastgen.objectives.parts.gan import GAN
from fastgen.process import Flow, Process

# The table


@NAMES
def test_the_weight_is_r_squared_times_the_second_derivative(name: DivergenceName):
    check_weight_is_the_second_derivative(name)


REFERENCE: dict[DivergenceName, float] = {  # d / d(generator's mean) of p = N(0.3, 0.8) against N(0.9, 1.1), no noise
    "forward_kl": 0.545455,
    "reverse_kl": 0.750000,
    "jensen_shannon": 0.281621,
    "pearson": 1.152160,
    "neyman": 5.318779,
    "squared_hellinger": 0.299285,
    "jeffreys": 1.295455,
    "softened_reverse_kl": 0.468379,
}


@NAMES
def test_the_weights_give_the_reference_derivatives(name: DivergenceName):
    p, q = (torch.distributions.Normal(mean, variance**0.5) for mean, variance in ((0.3, 0.8), (0.9, 1.1)))
    x = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    log_ratio = p.log_prob(x) - q.log_prob(x)
    gap = (0.9 - x) / 1.1 - (0.3 - x) / 0.8
    measured = (q.log_prob(x).exp() * DIVERGENCES[name].h(log_ratio) * gap).sum() * (x[1] - x[0])
    assert measured.item() == pytest.approx(REFERENCE[name], abs=2e-6)


@pytest.mark.parametrize("name", ["forward_kl", "jeffreys", "jensen_shannon", "squared_hellinger", "pearson"])
def test_covering_divergences_pull_where_the_generator_is_missing(name: DivergenceName):
    assert (DIVERGENCES[name].h(RATIOS.log()).diff() > 0).all()


@pytest.mark.parametrize("name", ["softened_reverse_kl", "neyman"])
def test_seeking_divergences_pull_where_the_data_are_missing(name: DivergenceName):
    assert (DIVERGENCES[name].h(RATIOS.log()).diff() < 0).all()


@processes
@NAMES
def test_the_weighed_direction_is_the_divergences_gradient(process: Process, name: DivergenceName):
    check_direction_is_the_divergences_gradient(process, name)


@processes
def test_forward_kl_has_its_closed_form(process: Process):
    """E r (fake - real) = sigma^2 Sigma_fake^-1 (mean_fake - mean_real)."""
    noise = process.sigma(torch.tensor(T, dtype=torch.float64)) ** 2
    fake = marginals(process, LINE, T)[1].covariance_matrix
    close(weighed(process, "forward_kl")[0], noise * torch.linalg.solve(fake, LINE.other_mean - LINE.mean))


# f-distill


@processes
@NAMES
def test_f_distill_follows_its_formula(process: Process, name: DivergenceName):
    check_f_distill(process, name)


def test_f_distill_clips_the_ratio_before_it_is_normalised():
    check_f_distill(Flow(), "forward_kl", (0.5, 1.2))


@processes
def test_f_distill_of_reverse_kl_is_dmd2(process: Process):
    noises = (*quasi_random(2), quasi_random(2)[1].flip(0))
    objectives: list[Objective] = [FDistill(divergence="reverse_kl"), DMD2()]
    first, second = (slopes(judged(process), objective, scripted(*noises), "dm") for objective in objectives)
    close(first, second, tolerance=1e-12)


@pytest.mark.parametrize("kind", [FDistill, UniInstruct])
@pytest.mark.parametrize("gan", [GAN(kind="hinge"), GAN(kind="relativistic"), GAN(0.0)])
def test_a_discriminator_that_gives_no_ratio_is_refused(kind: type[Objective], gan: GAN):
    with pytest.raises(ValueError, match=r"set gan\.kind=logistic and a weight above 0"):
        kind(gan=gan)


@pytest.mark.parametrize("kind", [FDistill, UniInstruct])
@pytest.mark.parametrize("clip", [(0.0, 20.0), (20.0, 0.1)])
def test_bounds_that_no_ratio_lies_between_are_refused(kind: type[Objective], clip: tuple[float, float]):
    with pytest.raises(ValueError, match="need 0 < low < high"):
        kind(clip=clip)


@pytest.mark.parametrize("keep", [-0.1, 1.0])
def test_means_that_never_move_are_refused(keep: float):
    with pytest.raises(ValueError, match="need 0 <= keep < 1"):
        FDistill(keep=keep)


# The means of ratios


def test_ratios_are_normalised_at_their_noise_level():
    check_ratio_means()


def test_f_distill_keeps_the_means_that_it_is_told_to():
    roles = judged(Flow())
    means = roles["ratio_means"].means
    moved = []
    for keep in (0.0, 0.75):
        means.fill_(1.0)
        slopes(roles, FDistill(keep=keep), Batch(REAL.uncond(64), (2,), **streams()), "dm")
        moved.append(means - 1)
    close(moved[1], 0.25 * moved[0])
    assert (moved[0] != 0).any()
