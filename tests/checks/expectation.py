"""EMD against linear algebra and the forward KL divergence between Gaussians."""

import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    REAL,
    believed,
    close,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from fastgen.objectives import Batch
from fastgen.objectives.distribution.emd import EMDistillation
from fastgen.process import Flow, Process

A, B = 0.3, 0.2


def check_two_steps_by_hand(process: Process) -> None:
    """The chain of (eps, z) with g(z) = mean + factor z, and its sum of pulls, in float64."""
    z, eps = quasi_random(2, 256)
    xi, zeta, xi2, zeta2 = (x for i in (1, 2) for x in quasi_random(2, 256 * 2**i)[0].split(256)[:2])
    objective = EMDistillation(corrections=2, noise_step=A, latent_step=B, times=only(0.5))
    batch = scripted(z, eps, xi, zeta, xi2, zeta2, z)
    measured = slopes(gaussian_roles(process), objective, batch, "dm")
    t = torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    pull = torch.zeros_like(z)
    for own, of_z in ((xi, zeta), (xi2, zeta2)):
        x_t = alpha * (OTHER_MEAN + z @ OTHER_FACTOR.T) + sigma * eps
        real = believed(MEAN, COVARIANCE, x_t, alpha, sigma)
        fake = believed(OTHER_MEAN, OTHER_FACTOR @ OTHER_FACTOR.T, x_t, alpha, sigma)
        score = alpha * (real - fake) / sigma**2
        eps = eps + A * (sigma * score - eps) + (2 * A) ** 0.5 * own
        z = z + B * (alpha * score @ OTHER_FACTOR - z) + (2 * B) ** 0.5 * of_z
        pull = (1 - A) * pull + A * (real - fake)
    close(measured, (-pull.mean(dim=0) / 2, -pull.T @ z / len(z) / 2))


def check_many_steps_follow_the_forward_kl() -> None:
    """By the mean: sigma^2 / alpha^2 times the gradient of KL(p_t | q_t)."""
    objective = EMDistillation(corrections=60, noise_step=0.1, latent_step=0.1, times=only(0.5))
    batch = Batch(REAL.uncond(4096), (2,), **streams())
    mean, _ = slopes(gaussian_roles(Flow()), objective, batch, "dm")
    exact = forward_kl(alpha=0.5, sigma=0.5)[0]
    close(mean, exact / 2, tolerance=0.03)


def forward_kl(*, alpha: float, sigma: float) -> tuple[Tensor, ...]:
    """sigma^2 / alpha^2 times its gradient by the generator's mean and factor."""
    mean, factor = OTHER_MEAN.clone().requires_grad_(), OTHER_FACTOR.clone().requires_grad_()
    unit = sigma**2 * torch.eye(2, dtype=torch.float64)
    fake = MultivariateNormal(alpha * mean, alpha**2 * factor @ factor.T + unit)
    real = MultivariateNormal(alpha * MEAN, alpha**2 * COVARIANCE + unit)
    found = torch.autograd.grad(kl_divergence(real, fake), [mean, factor])
    return tuple((sigma / alpha) ** 2 * slope for slope in found)
