"""Distances between distributions of which few particles are known each: maximum mean discrepancy."""

import torch
from torch import Tensor

from ...errors import UserError
from ...process import Latent
from .base import Batch

NEAREST = 1e-8
"""Particles that are nearer than this do not push each other (IMM, arXiv:2503.07565, appendix C.8)."""


def check_whole_groups(batch: Batch, group: int) -> None:
    """Raises UserError for a micro-batch that is no whole number of groups."""
    if batch.size % group:
        raise UserError(
            f"objective.group is {group}, and a micro-batch has {batch.size} samples: set train.batch (or "
            f"train.micro_batch) to a multiple of {group} on each process"
        )


def of_first(values: Tensor, group: int) -> Tensor:
    """What the first row of every `group` rows has, for all of them, [B]."""
    firsts: Tensor = values.unflatten(0, (-1, group))[:, :1]
    return firsts.expand(-1, group).flatten(0, 1)


def laplace_discrepancy(x: Latent, y: Latent, rate: Tensor) -> Tensor:
    """Squared MMD of particles x and y [G, M, ...] in each of G groups, [G], under Laplace kernels.

    k(a, b) = exp(-rate |a - b| / D) of D elements, with rates [G]; all M^2 pairs count, a particle's with itself too
    (V-statistic; Gretton et al. 2012; IMM, arXiv:2503.07565, eq. 67). Kernels are summed as k - 1, which are small
    where there are many elements.
    """

    def mean_kernel(a: Tensor, b: Tensor) -> Tensor:
        apart = torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=NEAREST)
        return torch.expm1(-rate.to(apart)[:, None, None] * apart / a.shape[-1]).mean(dim=(1, 2))

    x, y = x.flatten(2), y.flatten(2)
    return mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y)
