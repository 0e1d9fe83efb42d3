"""Decoded pixels by item number, each decoded once while the whole set fits into memory."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, warn
from .decode import Pixels, Size

THREADS = 8  # most threads that decode


def check_settings(size: Size, channels: int, cache_gib: float, unreadable: int) -> None:
    """Raise UserError unless images of that height and width and `channels` channels can be made."""
    rules = {
        f"size is {min(size)}, but the side of an image is at least 1 pixel": min(size) >= 1,
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

    An image that cannot be read gives way to the next one of its shape in the set that can, the same on every run.

    Args:
        decode: item number -> uint8 [C, H, W].
        count: number of items.
        size: bytes that the whole set has as pixels.
        limit_gib: pixels are kept only if those of the whole set take no more memory than this, in GiB.
        unreadable: how many images may give way, each said by its name.
        after: item number -> the next one of the same shape, round and round.
    """

    def __init__(
        self,
        decode: Callable[[int], Pixels],
        count: int,
        *,
        size: int,
        limit_gib: float,
        unreadable: int,
        after: Callable[[int], int] | None = None,
    ) -> None:
        self._decode, self._count, self._unreadable = decode, count, unreadable
        self._after = after or (lambda index: (index + 1) % count)
        self._kept: list[Pixels | None] | None = [None] * count if size <= limit_gib * 2**30 else None
        self._skipped: set[int] = set()
        self._noting = Lock()
        self._threads = ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "fastgen-decode")
        self._begun = False

    def images(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """uint8 [B, C, H, W] of the items at `indices`, and which items they are in the end.

        Raises:
            UserError: more images than may cannot be read; the message names the last of them.
        """
        alone = 0 if self._begun else 1  # what all of them read is made ready by the first, not by each thread
        found = [*map(self._readable, indices[:alone]), *self._threads.map(self._readable, indices[alone:])]
        self._begun = True
        pixels = np.stack([pixels for _, pixels in found])
        return torch.from_numpy(pixels), [index for index, _ in found]

    def _readable(self, index: int) -> tuple[int, Pixels]:
        first, tried = index, False
        while not (tried and index == first):
            if index not in self._skipped:
                try:
                    return index, self._pixels(index)
                except UserError as error:
                    self._skip(index, error)
            index, tried = self._after(index), True
        raise UserError("no image of one shape of the data set can be read: replace those that the log names")

    def _skip(self, index: int, error: UserError) -> None:
        with self._noting:
            if index in self._skipped:
                return
            if len(self._skipped) >= min(self._unreadable, self._count - 1):
                before = f"; {len(self._skipped)} were skipped, as many as `unreadable` allows" if self._skipped else ""
                raise UserError(f"{error}{before}") from error
            self._skipped.add(index)
        warn(f"skipped, number {len(self._skipped)} of at most {self._unreadable}: {error}")

    def _pixels(self, index: int) -> Pixels:
        if self._kept is None:
            return self._decode(index)
        found = self._kept[index]
        if found is None:
            found = self._kept[index] = self._decode(index)
        return found
