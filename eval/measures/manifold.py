"""Where samples lie among real ones: precision, recall, density, coverage and nearest neighbours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .figure import Figure, NotMeasured

NEIGHBOURS = 5
LIMIT = 10_000


def prdc(sample: Tensor, real: Tensor, *, seed: int, k: int = NEIGHBOURS, limit: int = LIMIT) -> dict[str, Figure]:
    """Fidelity and variety by balls around each point that reach to its k-th neighbour in its own set.

    precision, recall: Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1-3. density, coverage: Naeem et al. 2020,
    arXiv 2002.09797, eq. 4-5, whose sums and balls use real images only.

    Args:
        sample, real: features [N, d], [M, d]; of more than `limit`, as many are drawn without replacement.

    Raises:
        NotMeasured: a set has no k-th neighbour.
    """
    rng = torch.Generator().manual_seed(seed)
    sample, real = (_at_most(rows, limit, rng).double() for rows in (sample, real))
    if min(len(sample), len(real)) <= k:
        raise NotMeasured(f"balls need more than k = {k} images on either side")
    sample_reach, real_reach = _reach(sample, k), _reach(real, k)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    closest = torch.full_like(real_reach, torch.inf)
    balls = []
    for part, reach in zip(sample.split(1024), sample_reach.split(1024), strict=True):
        distance = torch.cdist(part, real)
        balls.append((distance <= real_reach).sum(1))
        recalled |= (distance <= reach[:, None]).any(0)
        closest = torch.minimum(closest, distance.amin(0))
    around = torch.cat(balls).double()
    values = {
        "precision": (around > 0).double().mean(),
        "recall": recalled.double().mean(),
        "density": around.mean() / k,
        "coverage": (closest <= real_reach).double().mean(),
    }
    details = {"k": k, "images": len(sample), "real_images": len(real), "seed": seed}
    return {name: Figure(float(value), details=details) for name, value in values.items()}


@dataclass(frozen=True, eq=False)
class Nearest:
    """The k nearest of a set for each query, nearest first: `index` int64 [n, k], `distance` float64 [n, k]."""

    index: Tensor
    distance: Tensor


def nearest(queries: Tensor, rows: Tensor, k: int) -> Nearest:
    """Euclidean nearest neighbours of queries [n, d] among rows [N, d]; fewer than k where N is smaller."""
    distance = torch.cat([torch.cdist(queries.double(), part.double()) for part in rows.split(8192)], 1)
    found = distance.topk(min(k, len(rows)), largest=False)
    return Nearest(found.indices.cpu(), found.values.cpu())


def _at_most(rows: Tensor, limit: int, rng: torch.Generator) -> Tensor:
    if len(rows) <= limit:
        return rows
    return rows[torch.randperm(len(rows), generator=rng)[:limit].to(rows.device)]


def _reach(rows: Tensor, k: int) -> Tensor:
    """Distance of each row to its k-th nearest other row, [N]."""
    parts = [torch.cdist(part, rows).topk(k + 1, largest=False).values[:, -1] for part in rows.split(1024)]
    return torch.cat(parts)
