"""Denoising of samples that are themselves noisy: x_s at times s > 0, of whose making nothing is known."""

import torch
from closed_forms import COVARIANCE, MEAN, close, processes
from sub_intervals import (
    S,
    T,
    check_precision,
    check_targets_are_unbiased,
    check_times_are_laid_over,
    check_velocity_target,
    levels,
    renoised_twice,
)

from fastgen.objectives.parts.ops import Noised
from fastgen.process import Process

UNIT = torch.eye(2, dtype=torch.float64)


@processes
def test_regression_on_the_targets_finds_the_conditional_mean(process: Process):
    check_targets_are_unbiased(process)


@processes
def test_the_velocity_target_is_the_papers(process: Process):
    check_velocity_target(process)


@processes
def test_of_clean_samples_the_target_is_the_sample_and_its_noise(process: Process):
    x0, eps = torch.randn(2, 9, 3)
    t = torch.linspace(0.1, 1, 9, dtype=torch.float64)
    for noised in (Noised.of(process, x0, t, eps), Noised.of(process, x0, t, eps, s=0 * t)):
        assert torch.equal(noised.truth.x0, x0)
        assert torch.equal(noised.truth.eps, eps)
        assert torch.equal(noised.precision, torch.ones_like(t))
        close(noised.x_t, process.renoise(x0, t, eps))
        assert noised.x_t.dtype == torch.float32


@processes
def test_noising_twice_is_noising_once_in_law(process: Process):
    _, noised = renoised_twice(process)
    alpha, sigma = levels(process, T)
    close(noised.x_t.mean(dim=0), alpha * MEAN)
    close(torch.cov(noised.x_t.T, correction=0), alpha**2 * COVARIANCE + sigma**2 * UNIT)


@processes
def test_the_loss_stays_bounded_near_the_samples_own_time(process: Process):
    check_precision(process)


@processes
def test_the_gradient_by_the_sample_is_its_factor(process: Process):
    x = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    s, t = (torch.full((4,), time, dtype=torch.float64) for time in (S, T))
    noised = Noised.of(process, x, t, torch.randn(4, 2, dtype=torch.float64), s=s)
    (slope,) = torch.autograd.grad(noised.x_t.sum(), x)
    factor = levels(process, T)[0] / levels(process, S)[0]
    close(slope, factor.expand(4, 2))
    close(noised.scale, factor.expand(4))


def test_a_law_of_times_is_laid_over_those_that_are_open():
    check_times_are_laid_over()
