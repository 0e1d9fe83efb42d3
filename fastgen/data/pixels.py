"""Decoded pixels by item number, each decoded once while the whole set fits into memory."""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, warn
from .decode import Pixels

THREADS = 8  # that decode at most


def check_settings(size: int, channels: int, cache_gib: float, unreadable: int) -> None:
    """Raise UserError unless images of `size` x `size` pixels and `channels` channels can be made."""
    rules = {
        f"size is {size}, but the side of an image is at least 1 pixel": size >= 1,
        f"channels is {channels}, but an image has 3 channels (RGB) or 1 (grey)": channels in (1, 3),
        f"cache_gib is {cache_gib}, but memory for decoded images is 0 or more GiB": cache_gib >= 0,
        f"unreadable is {unreadable}, but 0 or more images may be unreadable": unreadable >= 0,
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
    """Images [B, C, H, W] of a set by their numbers, decoded by several threads unless they were seen before.

    An image that cannot be read gives way to the next one in the set that can, the same on every run.

    Args:
        decode: item number -> uint8 [C, H, W].
        shape: (N, C, H, W) of the whole set.
        limit_gib: pixels are kept only if those of the whole set take no more memory than this, in GiB.
        unreadable: how many images may give way, each said by its name.
    """

    def __init__(
        self, decode: Callable[[int], Pixels], shape: tuple[int, int, int, int], *, limit_gib: float, unreadable: int
    ) -> None:
        self._decode, self._count, self._unreadable = decode, shape[0], unreadable
        self._kept = np.empty(shape, np.uint8) if math.prod(shape) <= limit_gib * 2**30 else None
        self._known = np.zeros(shape[0], bool)
        self._skipped: set[int] = set()
        self._noting = Lock()
        self._threads = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "fastgen-decode")

    def images(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """float32 [B, C, H, W] in [-1, 1] of the items at `indices`, and which items they are in the end.

        Raises:
            UserError: more images than may cannot be read; the message names the last of them.
        """
        found = list(self._threads.map(self._readable, indices))
        pixels = np.stack([pixels for _, pixels in found])
        return to_images(torch.from_numpy(pixels)), [index for index, _ in found]

    def _readable(self, index: int) -> tuple[int, Pixels]:
        while True:
            if index not in self._skipped:
                try:
                    return index, self._pixels(index)
                except UserError as error:
                    self._skip(index, error)
            index = (index + 1) % self._count

    def _skip(self, index: int, error: UserError) -> None:
        with self._noting:
            if len(self._skipped) >= min(self._unreadable, self._count - 1):
                before = f"; {len(self._skipped)} were skipped, as many as `unreadable` allows" if self._skipped else ""
                raise UserError(f"{error}{before}") from error
            self._skipped.add(index)
        warn(f"skipped, number {len(self._skipped)} of at most {self._unreadable}: {error}")

    def _pixels(self, index: int) -> Pixels:
        if self._kept is None:
            return self._decode(index)
        if not self._known[index]:
            self._kept[index] = self._decode(index)
            self._known[index] = True
        pixels: Pixels = self._kept[index]
        return pixels
