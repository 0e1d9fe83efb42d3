"""Sliced Wasserstein distances of patches on Laplacian pyramid levels (Karras et al. 2018, arXiv 1710.10196, sec. 5).

They see what a classifier's features do not: grids, ringing, lost grain, each at its own scale.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .figure import Figure

PATCH = 7
PATCHES = 64  # per image and level
IMAGES = 2048
DIRECTIONS = 512
COARSEST = 16  # pixels of a pyramid's last level

_BINOMIAL = torch.tensor([1.0, 4, 6, 4, 1]) / 16


def laplacian_pyramid(images: Tensor) -> list[Tensor]:
    """Levels of images [B, C, H, W], finest first; each but the last is what its next one does not hold."""
    levels = []
    while min(images.shape[-2:]) // 2 >= COARSEST:
        smaller = _blur(images)[..., ::2, ::2]
        levels.append(images - _expand(smaller, images.shape[-2:]))
        images = smaller
    return [*levels, images]


def patches(images: Tensor, numbers: Sequence[int], *, seed: int) -> list[Tensor]:
    """Random 7 x 7 patches of every pyramid level, float16 [B, 64, C, 7, 7] each.

    Args:
        images: uint8 [B, C, H, W], no side below 7 pixels.
        numbers: the images' numbers; places depend on `seed` and the image's number, not on the batch.
    """
    levels = laplacian_pyramid(images.float())
    drawn = []
    for depth, level in enumerate(levels):
        windows = level.unfold(2, PATCH, 1).unfold(3, PATCH, 1)  # [B, C, rows, columns, 7, 7]
        rows, columns = windows.shape[2:4]
        places = torch.stack([_places(seed, number, depth, rows * columns) for number in numbers])
        places = places.to(images.device)
        which = torch.arange(len(images), device=images.device)[:, None]
        drawn.append(windows[which, :, places // columns, places % columns].half().cpu())
    return drawn


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> float:
    """Mean over directions [k, d] of the 1-Wasserstein distance of points [n, d] and [n, d] projected on them."""
    return float(((a @ directions.T).sort(0).values - (b @ directions.T).sort(0).values).abs().mean())


def patch_distance(sample: Sequence[Tensor], real: Sequence[Tensor], *, seed: int) -> Figure:
    """1000 times the mean over levels of the distance of patches, each set normalised per colour channel.

    The details hold each level, finest first. Of unequal sets the first common number of images counts.

    Args:
        sample, real: patches of each level [N, 64, C, 7, 7], from `patches`.
    """
    levels = [_level_distance(a, b, seed=seed) for a, b in zip(sample, real, strict=True)]
    details = {f"level_{depth}": value for depth, value in enumerate(levels)}
    images = min(len(sample[0]), len(real[0]))
    return Figure(sum(levels) / len(levels), details={**details, "images": images, "seed": seed})


def _level_distance(a: Tensor, b: Tensor, *, seed: int) -> float:
    count = min(len(a), len(b))
    a, b = _descriptors(a[:count]), _descriptors(b[:count])
    directions = torch.randn(DIRECTIONS, a.shape[1], generator=torch.Generator().manual_seed(seed))
    directions = F.normalize(directions).to(a)
    parts = directions.split(32)
    return 1000 * sum(sliced_wasserstein(a, b, part) * len(part) for part in parts) / DIRECTIONS


def _descriptors(rows: Tensor) -> Tensor:
    """[N, 64, C, 7, 7] -> [64 N, 49 C], each colour channel with mean 0 and deviation 1."""
    flat = rows.flatten(0, 1).float()
    mean, deviation = flat.mean((0, 2, 3), keepdim=True), flat.std((0, 2, 3), keepdim=True)
    return ((flat - mean) / deviation.clamp(min=1e-3)).flatten(1)


def _places(seed: int, image: int, depth: int, count: int) -> Tensor:
    rng = torch.Generator().manual_seed(((seed * 1_000_003 + image) * 16 + depth) % 2**63)
    return torch.randint(count, (PATCHES,), generator=rng)


def _blur(images: Tensor) -> Tensor:
    kernel = _BINOMIAL.to(images)
    weight = (kernel[:, None] * kernel).expand(images.shape[1], 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), weight, groups=images.shape[1])


def _expand(images: Tensor, size: torch.Size) -> Tensor:
    """Twice as many pixels: zeros between them, then the blur, which keeps a quarter of the mass."""
    wide = images.new_zeros(*images.shape[:2], *size)
    wide[..., ::2, ::2] = images
    return 4 * _blur(wide)
