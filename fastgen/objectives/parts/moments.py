"""Maximum mean discrepancy (MMD) between groups of particles."""

import torch
from torch import Tensor

from ...errors import UserError
from ...process import Latent
from .base import Batch

NEAREST = 1e-8
"""Particles that are nearer than this do not push each other (IMM, arXiv:2503.07565, appendix C.8)."""


def check_whole_groups(batch: Batch, group: int) -> None:
    """Raise UserError if the batch is not a whole number of groups."""
    if batch.size % group:
        raise UserError(
            f"objective.group is {group}, and a micro-batch has {batch.size} samples: set train.batch (or "
            f"train.micro_batch) to a multiple of {group} on each process"
        )


def of_first(values: Tensor, group: int) -> Tensor:
    """Values [B] in which all rows of a group have the value of its first row."""
    firsts: Tensor = values.unflatten(0, (-1, group))[:, :1]
    return firsts.expand(-1, group).flatten(0, 1)


def laplace_discrepancy(x: Latent, y: Latent, rate: Tensor) -> Tensor:
    """Squared MMD [G] between the particles x and y [G, M, ...] of each group, under Laplace kernels.

    The kernel of two particles of D elements is exp(-rate |a - b| / D), with one rate [G] for each group. All M^2 pairs
    are averaged, also those of a particle with itself: a V-statistic (IMM, arXiv:2503.07565, eq. 67). k - 1 is summed
    in place of k, because k is near 1 for samples of many elements.
    """

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=NEAREST)
        return torch.expm1(-rate.to(apart)[:, None, None] * apart / a.shape[-1]).mean(dim=(1, 2))

    x, y = x.flatten(2), y.flatten(2)
    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
