"""Denoising of samples that are themselves noisy, against least squares."""

import pytest
import torch
from closed_forms import COVARIANCE, MEAN, believed, close, cubature, gaussian_roles, scripted
from torch import Tensor

from fastgen.objectives.parts.ops import Noised, denoising_loss, renoised
from fastgen.process import ROWS, Flow, Prediction, Process, Uniform

S, T = 0.5, 0.7


def levels(process: Process, t: float) -> tuple[Tensor, Tensor]:
    time = torch.tensor(t, dtype=torch.float64)
    return process.alpha(time), process.sigma(time)


def renoised_twice(process: Process) -> tuple[Tensor, Noised]:
    """x_s of REAL and its noising up to t, over points whose averages of squares are expectations."""
    first, second = cubature(3)
    points = torch.cat([first, second], dim=1)
    a_s, s_s = levels(process, S)
    x_s = a_s * (MEAN + points[:, :2] @ torch.linalg.cholesky(COVARIANCE).T) + s_s * points[:, 2:4]
    s, t = (torch.full((len(x_s),), time, dtype=torch.float64) for time in (S, T))
    return x_s, Noised.of(process, x_s, t, points[:, 4:], s=s)


def fitted(x_t: Tensor, target: Tensor) -> Tensor:
    """The values at x_t of the affine function that is the target's least-squares fit."""
    inputs = torch.cat([x_t, torch.ones(len(x_t), 1, dtype=torch.float64)], dim=1)
    return inputs @ torch.linalg.lstsq(inputs, target).solution


def check_targets_are_unbiased(process: Process) -> None:
    x_s, noised = renoised_twice(process)
    alpha, sigma = levels(process, T)
    x0 = believed(MEAN, COVARIANCE, noised.x_t, alpha, sigma)
    close(fitted(noised.x_t, noised.truth.x0), x0)
    close(fitted(noised.x_t, noised.truth.eps), (noised.x_t - alpha * x0) / sigma)
    naive = fitted(noised.x_t, x_s / levels(process, S)[0])
    assert (naive - x0).abs().max() > 0.02, "x_s taken for a clean sample is biased"


def check_velocity_target(process: Process) -> None:
    """[(a_s^2 sigma_t + a_t sigma_s^2) / (a_s^2 std)] eps - x_s / a_s (arXiv:2510.27684)."""
    x_s, noised = renoised_twice(process)
    (a_s, s_s), (a_t, s_t) = levels(process, S), levels(process, T)
    std = (s_t**2 - (a_t / a_s * s_s) ** 2).sqrt()
    wanted = (a_s**2 * s_t + a_t * s_s**2) / (a_s**2 * std) * noised.eps - x_s / a_s
    close(noised.truth.output(ROWS["difference"]), wanted)


def check_precision(process: Process) -> None:
    """The weighted error in eps is that of a target whose noise has unit variance, however near t is to s."""
    x_s = torch.randn(5, 2, dtype=torch.float64)
    s, eps = torch.full((5,), S, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    t = s + torch.tensor([1e-6, 1e-3, 0.1, 0.3, 0.5], dtype=torch.float64)
    noised = Noised.of(process, x_s, t, eps, s=s)
    close(noised.precision.sqrt()[:, None] * noised.truth.eps, eps, tolerance=1e-5)
    guess = Prediction.of_x0(process, noised.x_t, t, torch.zeros_like(x_s))
    error = (guess.eps - noised.truth.eps) ** 2
    close(denoising_loss(guess, noised, space="eps"), (noised.precision[:, None] * error).mean())
    assert noised.precision[0] < 1e-3


def check_times_are_laid_over() -> None:
    roles = gaussian_roles(Flow())
    x, law = torch.zeros(4096, 2, dtype=torch.float64), Uniform(0.5, 1.0)
    for s, until, low, high in ((None, None, 0.5, 1), (0.2, None, 0.6, 1), (0.2, 0.6, 0.4, 0.6), (None, 0.6, 0.3, 0.6)):
        batch = scripted(torch.randn_like(x))
        ends = [None if end is None else batch.full(end) for end in (s, until)]
        t = renoised(roles, batch, x, law=law, s=ends[0], until=ends[1]).t
        assert (t.min().item(), t.max().item()) == pytest.approx((low, high), abs=1e-3)
        assert t.mean().item() == pytest.approx((low + high) / 2, abs=0.01)
