"""Verbs that objectives share. Each does one thing; none has a mode."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..models.roles import Roles
from ..process import ROWS, Latent, Prediction, Time, TimeLaw
from .base import Batch

RowName = Literal["x0", "eps", "v", "flow", "edm"]
"""The parameterisation in which a denoising error is squared."""

Call = Callable[[Denoiser, Latent, Time, Conditioning], Prediction]

LARGE = 2**16
"""Values of a large sample (SDXL at 1024 px): a few of them fill a GPU, and a guidance pair need not be one call."""


def look(model: Denoiser, x_t: Latent, t: Time, cond: Conditioning) -> Prediction:
    """The model's belief, evaluated without autograd."""
    with torch.no_grad():
        return model(x_t, t, cond)


def through(model: Denoiser, x_t: Latent, t: Time, cond: Conditioning) -> Prediction:
    """The model's belief with the graph to x_t kept; its parameters are frozen unless it is its turn."""
    return model(x_t, t, cond)


def guided(call: Call, model: Denoiser, x_t: Latent, t: Time, cond: Conditioning, *, w: float) -> Prediction:
    """The belief under classifier-free guidance; w = 1 is a plain call.

    Both halves go in one call, but those of several large samples one after the other, which takes less memory.
    """
    if w == 1:
        return call(model, x_t, t, cond)
    if len(x_t) > 1 and x_t[0].numel() >= LARGE:
        return model.guide(call(model, x_t, t, cond), call(model, x_t, t, cond.unconditional), w)
    both = Conditioning.cat([cond, cond.unconditional])
    halves = call(model, torch.cat([x_t, x_t]), torch.cat([t, t]), both).split(len(t))
    return model.guide(halves[0], halves[1], w)


@dataclass(frozen=True)
class Noised:
    """x0 renoised to x_t at times t with noise eps."""

    x_t: Latent
    t: Time
    eps: Latent


def renoised(roles: Roles, batch: Batch, x0: Latent, *, law: TimeLaw) -> Noised:
    """x0 [B, ...] carried to times drawn from `law` with fresh noise; differentiable in x0."""
    t, eps = law.sample(roles.process, len(x0), batch.rng), batch.noise()
    return Noised(roles.process.renoise(x0, t, eps), t, eps)


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


def denoising_loss(prediction: Prediction, x0: Latent, eps: Latent, *, space: RowName) -> Tensor:
    """Mean squared error in a row's space: the difference of outputs is p (x0' - x0) + q (eps' - eps)."""
    wanted = Prediction(prediction.process, prediction.t, x0, eps)
    return (prediction.output(ROWS[space]) - wanted.output(ROWS[space])).square().mean()


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Logistic loss of logits [B, k] that are large for real samples; the optimum is log p_real / p_fake."""
    return softplus(-real).mean() + softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """Non-saturating logistic loss (Goodfellow et al. 2014, arXiv:1406.2661)."""
    return softplus(-fake).mean()
