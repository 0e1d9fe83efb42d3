"""Directions of distribution matching, against linear algebra and autograd of analytic densities."""

import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    PLANE,
    ScriptedBatch,
    clean,
    close,
    cubature,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from fastgen.models.roles import Roles
from fastgen.objectives.distribution.decoupled_dmd import DecoupledDMD
from fastgen.objectives.distribution.diff_instruct import DiffInstruct
from fastgen.objectives.distribution.vsd import VSD, SwiftBrush
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture

UNIT = torch.eye(2, dtype=torch.float64)
OTHER = Mixture(PLANE.means + 0.4, PLANE.covariances.flip(0), labels=PLANE.labels)


def level(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


def clean_mean(data: Mixture, x_t: Tensor, alpha: Tensor, sigma: Tensor, label: int | None = None) -> Tensor:
    """E[x0 | x_t] of a mixture by autograd of the log-density of torch's own one."""
    rows = (data.labels == label) if label is not None else data.labels >= 0
    laws = MultivariateNormal(alpha * data.means[rows], alpha**2 * data.covariances[rows] + sigma**2 * UNIT)
    x = x_t.detach().requires_grad_()
    log_density = MixtureSameFamily(Categorical(data.weights[rows]), laws).log_prob(x).sum()
    (score,) = torch.autograd.grad(log_density, x)
    return (x_t + sigma**2 * score) / alpha


def classed(label: int, *script: Tensor) -> ScriptedBatch:
    """A scripted batch of one class of PLANE."""
    cond = PLANE.cond(torch.full((len(script[0]),), label))
    return ScriptedBatch(cond, (2,), **streams(), script=list(script))


def mixed_roles(process: Process) -> Roles:
    """Exact scores of two mixtures with classes."""
    return gaussian_roles(process, real_score=ExactDenoiser(process, PLANE), fake_score=ExactDenoiser(process, OTHER))


def per_sample(grad: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Derivatives by the affine generator's mean and factor of the mean-reduced surrogate of `grad`."""
    return grad.mean(dim=0) / 2, grad.T @ z / len(z) / 2


def check_diff_instruct(process: Process) -> None:
    """E[fake - real] = sigma^2 R^-1 D, E[(fake - real) z] = sigma^2 (R^-1 - G^-1) L of the noised covariances R, G."""
    measured = slopes(gaussian_roles(process), DiffInstruct(times=only(0.4)), scripted(*cubature(2)), "dm")
    alpha, sigma = process.alpha(level(0.4)), process.sigma(level(0.4))
    real = (alpha**2 * COVARIANCE + sigma**2 * UNIT).inverse()
    fake = (alpha**2 * OTHER_FACTOR @ OTHER_FACTOR.T + sigma**2 * UNIT).inverse()
    expected = sigma**2 * real @ (OTHER_MEAN - MEAN), sigma**2 * (real - fake) @ OTHER_FACTOR
    close(measured, tuple(slope / 2 for slope in expected))


def check_swiftbrush_and_vsd(process: Process) -> None:
    z, eps = quasi_random(2, 256)
    alpha, sigma = process.alpha(level(0.5)), process.sigma(level(0.5))
    x_t = alpha * (OTHER_MEAN + z @ OTHER_FACTOR.T) + sigma * eps
    (real, real_null), (fake, fake_null) = (
        (clean_mean(data, x_t, alpha, sigma, label=1), clean_mean(data, x_t, alpha, sigma)) for data in (PLANE, OTHER)
    )
    weight = alpha * sigma / (alpha**2 + sigma**2)
    guided = real_null + 4.5 * (real - real_null)
    expected = {SwiftBrush: fake_null + 4.5 * (fake - fake_null) - guided, VSD: fake - guided}
    for kind, gap in expected.items():
        measured = slopes(mixed_roles(process), kind(times=only(0.5)), classed(1, z, eps), "dm")
        close(measured, per_sample(weight * gap, z), tolerance=1e-5)


def check_decoupled_sum(process: Process) -> None:
    """With the same times and noises its two terms are DMD's guided direction."""
    z, eps = quasi_random(2, 256)
    times = {"times": only(0.5), "augmentation_times": only(0.5)}
    decoupled = DecoupledDMD(augmentation=3.0, weight="none", below_step=False, **times)
    terms = [slopes(mixed_roles(process), decoupled, classed(1, z, eps, eps), term) for term in ("dm", "augmentation")]
    coupled = slopes(mixed_roles(process), DiffInstruct(guidance=Fixed(3.0), times=only(0.5)), classed(1, z, eps), "dm")
    close(tuple(a + b for a, b in zip(*terms, strict=True)), coupled, tolerance=1e-5)
    alpha, sigma = process.alpha(level(0.5)), process.sigma(level(0.5))
    x_t = alpha * (OTHER_MEAN + z @ OTHER_FACTOR.T) + sigma * eps
    pull = 2 * (clean_mean(PLANE, x_t, alpha, sigma) - clean_mean(PLANE, x_t, alpha, sigma, label=1))
    close(terms[1], per_sample(pull, z), tolerance=1e-5)


def check_augmentation_times(*, below: bool) -> None:
    """Times in (s, t_call], or in all of (s, 1]."""
    seen: list[Tensor] = []
    exact = ExactDenoiser(Flow(), PLANE)
    exact.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    roles = gaussian_roles(Flow(), real_score=exact)
    batch = classed(1, *torch.randn(2, 512, 2, dtype=torch.float64))
    landing = clean(batch, OTHER_MEAN.expand(512, 2))
    low, called = batch.full(0.2), batch.full(0.6)
    batch.script = batch.script[:1]
    DecoupledDMD(below_step=below)._augmentation(roles, batch, type(landing)(landing.x, low, called, landing.x0))
    for t in seen:
        assert 0.2 < t.min() < 0.23
        assert 0.59 < t.max() <= 0.6 if below else 0.98 < t.max() <= 1
    assert len(seen) == 2
