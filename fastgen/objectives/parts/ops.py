"""Verbs that objectives share. Each does one thing; none has a mode."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...models.roles import Roles
from ...process import ROWS, Latent, Prediction, Process, Time, TimeLaw, laid, pad_like
from ...seeds import uniform
from .base import Batch

RowName = Literal["x0", "eps", "v", "flow", "difference", "edm"]
"""The parameterisation in which a denoising error is squared."""


@dataclass(frozen=True)
class Noised:
    """A sample at time s renoised to x_t at times t.

    Args:
        scale: factor [B] of the sample in x_t.
        truth: what a denoiser at x_t is to be taught, an unbiased estimate given the sample and its noise.
        precision: weight [B] that gives the noise in `truth` unit variance; 1 for clean samples.
        eps: the noise itself.
    """

    x_t: Latent
    t: Time
    scale: Time
    truth: Prediction
    precision: Time
    eps: Latent

    @classmethod
    def of(cls, process: Process, x: Latent, t: Time, eps: Latent, *, s: Time | None = None) -> "Noised":
        """x at times s [B], clean where not given, carried to t > s by `eps`; differentiable in x.

        With x_t = scale x_s + std eps the score of p_t is E[-eps / std | x_t] whatever x_s was made of, so that
        (sigma_t / std) eps estimates the whole noise in x_t (Phased DMD, arXiv:2510.27684, section 3.3).
        """
        if s is None:
            truth = Prediction(process, t, x, eps.to(x.dtype))
            return cls(process.renoise(x, t, eps), t, process.alpha(t), truth, torch.ones_like(t), eps)
        kernel, share = process.transition(s, t), process.sigma(s) / process.alpha(s)
        x_t = (pad_like(kernel.scale, x) * x + pad_like(kernel.std, x) * eps).to(x.dtype)
        whole = eps * pad_like(process.sigma(t) / kernel.std, x)
        x0 = x / pad_like(process.alpha(s), x) - pad_like(process.alpha(t) * share**2 / kernel.std, x) * eps
        truth = Prediction(process, t, x0.to(x.dtype), whole.to(x.dtype))
        return cls(x_t, t, kernel.scale, truth, (kernel.std / process.sigma(t)).square(), eps)


def drawn_times(roles: Roles, batch: Batch, *, law: TimeLaw, s: Time | None = None, until: Time | None = None) -> Time:
    """Times [B] of a law whose [0, 1] is laid over [s, until], from 0 and to 1 by default."""
    t = law.sample(roles.process, batch.size, batch.rng)
    if s is None and until is None:
        return t
    return laid(law, t, torch.zeros_like(t) if s is None else s, torch.ones_like(t) if until is None else until)


def renoised(
    roles: Roles, batch: Batch, x: Latent, *, law: TimeLaw, s: Time | None = None, until: Time | None = None
) -> Noised:
    """x [B, ...] at times s with fresh noise, at times that are drawn as `drawn_times` says."""
    t = drawn_times(roles, batch, law=law, s=s, until=until)
    return Noised.of(roles.process, x, t, batch.noise(), s=s)


def picked(weights: Tensor, rng: torch.Generator) -> Tensor:
    """Draws an index [B] for each row of weights [B, k], with the probabilities of `torch.multinomial`.

    Unlike that, it does not wait for the device to report whether the weights are valid.
    """
    below = weights.double().cumsum(dim=1)
    reached = below <= below[:, -1:] * uniform(rng, len(weights), 1, dtype=below.dtype)
    return reached.sum(dim=1)


def surrogate(x: Latent, grad: Latent) -> Tensor:
    """A loss whose gradient with respect to x is `grad`, mean-reduced."""
    return 0.5 * (x - (x - grad).detach()).square().mean()


def mean_abs(x: Tensor) -> Tensor:
    """Mean absolute value of each sample, [B, 1, ...]."""
    return x.abs().mean(dim=tuple(range(1, x.ndim)), keepdim=True)


def pseudo_huber(difference: Tensor, *, c: float) -> Tensor:
    """sqrt(|d|^2 + c^2) - c per sample, averaged; d is measured per element as in its mean square."""
    square = difference.square().flatten(1).mean(dim=1)
    return ((square + c**2).sqrt() - c).mean()


def denoising_loss(prediction: Prediction, noised: Noised, *, space: RowName) -> Tensor:
    """Mean squared error in a row's space: the difference of outputs is p (x0' - x0) + q (eps' - eps)."""
    error = prediction.output(ROWS[space]) - noised.truth.output(ROWS[space])
    return (pad_like(noised.precision, error).to(error.dtype) * error.square()).mean()
