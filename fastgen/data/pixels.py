"""Decoded pixels by item number, each decoded once while the whole set fits into memory."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .decode import Pixels


def check_settings(size: int, channels: int, cache_gib: float) -> None:
    """Raise UserError unless images of `size` x `size` pixels and `channels` channels can be made."""
    rules = {
        f"size is {size}, but the side of an image is at least 1 pixel": size >= 1,
        f"channels is {channels}, but an image has 3 channels (RGB) or 1 (grey)": channels in (1, 3),
        f"cache_gib is {cache_gib}, but memory for decoded images is 0 or more GiB": cache_gib >= 0,
    }
    for problem, kept in rules.items():
        if not kept:
            raise UserError(f"{problem}; change it in the settings of the data source")


def to_images(pixels: Tensor) -> Tensor:
    """uint8 0 .. 255 -> float32 in [-1, 1], any shape."""
    return pixels.float() / 127.5 - 1


def to_uint8(images: Tensor) -> Tensor:
    """Floats in [0, 1], any shape -> uint8 0 .. 255, rounded to the nearest level; what lies beyond is clamped."""
    return (images.clamp(0, 1) * 255).round().to(torch.uint8)


class PixelCache:
    """Images [B, C, H, W] of a set by their numbers, through `decode` for those not seen before.

    Args:
        decode: item number -> uint8 [C, H, W].
        shape: (N, C, H, W) of the whole set.
        limit_gib: pixels are kept only if those of the whole set take no more memory than this, in GiB.
    """

    def __init__(self, decode: Callable[[int], Pixels], shape: tuple[int, int, int, int], *, limit_gib: float) -> None:
        self._decode = decode
        self._kept = np.empty(shape, np.uint8) if math.prod(shape) <= limit_gib * 2**30 else None
        self._known = np.zeros(shape[0], bool)

    def images(self, indices: Sequence[int]) -> Tensor:
        """float32 [B, C, H, W] in [-1, 1] of the items at `indices`."""
        return to_images(torch.from_numpy(self._pixels(indices)))

    def _pixels(self, indices: Sequence[int]) -> Pixels:
        if self._kept is None:
            return np.stack([self._decode(index) for index in indices])
        for index in indices:
            if not self._known[index]:
                self._kept[index] = self._decode(index)
                self._known[index] = True
        pixels: Pixels = self._kept[np.asarray(indices)]
        return pixels
