"""The endless shuffled stream of a source's items, addressed by position."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from ..seeds import hash_of
from .source import Items, Source

Permutation = NDArray[np.intp]


class Loader:
    """Items of `source` by their position in an endless stream: epoch after epoch, each shuffled anew.

    Which item stands at a position, and whether it is mirrored, follows from the seed and the position alone.
    So a resumed run continues with the position it stopped at, and N processes split the stream by taking
    every N-th range. Images of the range that is expected next are decoded by a thread in the meantime.

    Args:
        source: data source that gives the items; only one thread at a time asks it.
        seed: seed of the order and of the mirroring.
        flip: mirror each image left to right with probability one half.
        shuffle: False keeps the order of the source.
    """

    def __init__(self, source: Source, *, seed: int, flip: bool = False, shuffle: bool = True) -> None:
        self._source = source
        self._seed = seed
        self._flip = flip
        self._order = lru_cache(maxsize=2)(self._shuffled if shuffle else self._unshuffled)
        # A second thread with its own OpenMP team would halve the speed of the first one's on a CPU.
        self._thread = ThreadPoolExecutor(1, "fastgen-data", initializer=torch.set_num_threads, initargs=(1,))
        self._ahead: _Ahead | None = None
        self._previous: int | None = None

    def take(self, position: int, count: int) -> Items:
        """The items at position .. position + count - 1 of the stream.

        Raises:
            UserError: one of these items cannot be read.
            ValueError: a position below 0, or no items.
        """
        if position < 0 or count < 1:
            raise ValueError(f"cannot take {count} items at position {position}")
        wanted = range(position, position + count)
        items = self._claim(wanted).result()
        self._look_ahead(wanted)
        return items

    def drawn(self, count: int) -> NDArray[np.bool_]:
        """Which items of the source stand at the first `count` positions, [len(source)]."""
        seen = np.zeros(len(self._source), bool)
        for epoch in range(-(-count // len(seen))):
            if seen.all():
                break
            seen[self._order(epoch)[: count - epoch * len(seen)]] = True
        return seen

    def _claim(self, wanted: range) -> "Future[Items]":
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.positions == wanted:
            return ahead.items
        if ahead is not None:
            ahead.items.cancel()
        return self._thread.submit(self._load, wanted)

    def _look_ahead(self, taken: range) -> None:
        stride = len(taken) if self._previous is None else taken.start - self._previous
        self._previous = taken.start
        following = range(taken.start + stride, taken.stop + stride)
        self._ahead = _Ahead(following, self._thread.submit(self._load, following))

    def _load(self, positions: range) -> Items:
        length = len(self._source)
        items = self._source.items([int(self._order(p // length)[p % length]) for p in positions])
        return self._mirrored(items, positions) if self._flip else items

    def _mirrored(self, items: Items, positions: range) -> Items:
        if items.images is None:
            return items
        chosen = torch.tensor([hash_of("flip", self._seed, position) % 2 == 1 for position in positions])
        return replace(items, images=items.images.flip(-1).where(chosen[:, None, None, None], items.images))

    def _shuffled(self, epoch: int) -> Permutation:
        # Unlike Generator.permutation, the raw bits of PCG64 never change between NumPy versions.
        bits = np.random.PCG64(hash_of("epoch", self._seed, epoch)).random_raw(len(self._source))
        order: Permutation = np.argsort(bits, kind="stable")
        return order

    def _unshuffled(self, epoch: int) -> Permutation:
        return np.arange(len(self._source))


@dataclass(frozen=True)
class _Ahead:
    """A range of positions that is expected next, and its items in the making."""

    positions: range
    items: "Future[Items]"
