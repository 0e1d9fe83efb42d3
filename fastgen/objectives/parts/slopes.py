"""How steep a discriminator is where samples lie: what its regularisers weigh, which are settings of `GAN`."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...models.regions import as_written
from ...process import Latent
from .base import Batch
from .ops import Noised
from .originals import AnyDiscriminator


def gradient_penalty(discriminator: AnyDiscriminator, batch: Batch, shown: Noised) -> Tensor:
    """Mean squared norm of the mean logit's gradient by x_t (Mescheder et al. 2018, arXiv:1801.04406)."""
    x_t: Latent = shown.x_t.detach().requires_grad_()
    with as_written(), sdpa_kernel(SDPBackend.MATH):  # attention's other kernels have no second derivative
        logits = discriminator(x_t, shown.t, batch.cond)
        (gradient,) = torch.autograd.grad(logits.mean(dim=1).sum(), x_t, create_graph=True)
    return gradient.square().flatten(1).sum(dim=1).mean()


def moved(discriminator: AnyDiscriminator, batch: Batch, shown: Noised, logits: Tensor, *, spread: float) -> Tensor:
    """Mean squared change of the logits [B, k] where the samples move by `spread` (APT, arXiv:2501.08316)."""
    there = shown.x_t + spread * batch.noise()
    change: Tensor = discriminator(there, shown.t, batch.cond) - logits
    return change.square().mean()


def slope_of_heads(logits: Tensor, read: Sequence[Tensor]) -> Tensor:
    """Squared norm of each head's slope by what it read, summed over heads, mean over samples (ADD, arXiv:2311.17042).

    Args:
        logits: of the heads [B, k].
        read: what they read, with gradient.
    """
    slopes = torch.autograd.grad(logits.sum(), read, create_graph=True)
    return torch.stack([each.square().sum() for each in slopes]).sum() / len(logits)
