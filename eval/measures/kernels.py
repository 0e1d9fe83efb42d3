"""Kernel distances between two sets of features: KID and CMMD."""

import torch
from torch import Tensor

from .figure import Figure

KID_SUBSETS = 50
KID_SUBSET_SIZE = 1000
CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
CMMD_IMAGES = 30_000


def kernel_inception_distance(
    a: Tensor, b: Tensor, *, seed: int, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE
) -> Figure:
    """KID (Binkowski et al. 2018, arXiv 1801.01401, section 4): unbiased MMD^2 of the kernel (x . y / d + 1)^3.

    Mean over subsets drawn without replacement; `details` hold their standard deviation.

    Args:
        a, b: features [N, d], [M, d]; computed in float64 on the device of `a`.
    """
    size = min(size, len(a), len(b))
    rng = torch.Generator().manual_seed(seed)
    values = torch.stack([_cubic_mmd(_subset(a, size, rng), _subset(b, size, rng)) for _ in range(subsets)])
    deviation = float(values.std(correction=0))
    return Figure(
        float(values.mean()), details={"sd": deviation, "subsets": subsets, "subset_size": size, "seed": seed}
    )


def cmmd(a: Tensor, b: Tensor, *, sigma: float = CMMD_SIGMA) -> Figure:
    """CMMD (Jayasumana et al. 2024, arXiv 2401.09603): 1000 MMD^2 of unit CLIP embeddings, Gaussian kernel.

    The estimator is the paper's, over all pairs with the diagonal, so it is biased upwards by about 1 / N.

    Args:
        a, b: embeddings [N, e], [M, e] of any length; normalised here. The first 30,000 of each count.
        sigma: width of the kernel exp(-|x - y|^2 / 2 sigma^2).
    """
    a, b = (torch.nn.functional.normalize(rows[:CMMD_IMAGES].double()) for rows in (a, b))
    similarity = _gaussian_mean(a, a, sigma) + _gaussian_mean(b, b, sigma) - 2 * _gaussian_mean(a, b, sigma)
    return Figure(CMMD_SCALE * similarity, details={"sigma": sigma, "images": len(a), "real_images": len(b)})


def _subset(rows: Tensor, size: int, rng: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=rng)[:size].to(rows.device)].double()


def _cubic_mmd(x: Tensor, y: Tensor) -> Tensor:
    d, m, n = x.shape[1], len(x), len(y)
    xx, yy, xy = ((left @ right.T / d + 1) ** 3 for left, right in ((x, x), (y, y), (x, y)))
    return (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (n * (n - 1)) - 2 * xy.mean()


def _gaussian_mean(a: Tensor, b: Tensor, sigma: float) -> float:
    """Mean of the kernel over all pairs of unit vectors, for which |x - y|^2 = 2 - 2 x . y."""
    total = sum(float(((part @ b.T - 1) / sigma**2).exp().sum()) for part in a.split(2048))
    return total / (len(a) * len(b))
