"""Which item of a source stands where in each epoch of the stream that is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..seeds import hash_of
from .mixture import Mixture
from .source import Source

Numbers = NDArray[np.intp]


class Order(Protocol):
    """The numbers of items by epoch; every epoch has as many."""

    @property
    def length(self) -> int:
        """Positions of an epoch."""

    def epoch(self, number: int) -> Numbers:
        """The items of an epoch, [length]."""


@dataclass(frozen=True)
class Kept:
    """The items as they are numbered, in every epoch."""

    length: int

    def epoch(self, number: int) -> Numbers:
        return np.arange(self.length)


@dataclass(frozen=True)
class Shuffled:
    """Every item once, in an order that follows from the seed and the epoch alone."""

    length: int
    seed: int

    def epoch(self, number: int) -> Numbers:
        return _shuffled(self.length, hash_of("epoch", self.seed, number))


@dataclass(frozen=True)
class Windowed:
    """Every item once: windows in their order, and the items of each shuffled among themselves.

    Args:
        window: items that a source reads together.
    """

    length: int
    window: int
    seed: int

    def epoch(self, number: int) -> Numbers:
        parts = []
        for index, start in enumerate(range(0, self.length, self.window)):
            size = min(self.window, self.length - start)
            parts.append(start + _shuffled(size, hash_of("window", self.seed, number, index)))
        return np.concatenate(parts)


@dataclass(frozen=True, eq=False)
class Among:
    """Those of an order's items that are chosen, in its order.

    Args:
        order: of all items, each once.
        chosen: whether each is, [n].
    """

    order: Order
    chosen: NDArray[np.bool_]

    @cached_property
    def length(self) -> int:
        return int(self.chosen.sum())

    def epoch(self, number: int) -> Numbers:
        items = self.order.epoch(number)
        return items[self.chosen[items]]


@dataclass(frozen=True)
class Weighted:
    """Items of several sources in fixed shares, those of each going through all of its own before any comes again.

    Args:
        parts: orders of the sources, whose items are numbered one source after the other.
        sizes: how many items each source has.
        shares: positions of an epoch that belong to each.
        seed: of how they are mixed.
    """

    parts: tuple[Order, ...]
    sizes: tuple[int, ...]
    shares: tuple[int, ...]
    seed: int

    @property
    def length(self) -> int:
        return sum(self.shares)

    def epoch(self, number: int) -> Numbers:
        starts = np.cumsum([0, *self.sizes[:-1]])
        drawn = [
            start + between(part, number * share, share)
            for part, start, share in zip(self.parts, starts, self.shares, strict=True)
        ]
        places = np.repeat(np.arange(len(drawn)), self.shares)[_shuffled(self.length, self._mixed(number))]
        mixed = np.empty(self.length, np.intp)
        for place, numbers in enumerate(drawn):
            mixed[places == place] = numbers
        return mixed

    def _mixed(self, number: int) -> int:
        return hash_of("mixed", self.seed, number)


@dataclass(frozen=True, eq=False)
class Bucketed:
    """Batches of one bucket each.

    An epoch has as many batches as the items of the order beneath need. What is left over in a bucket fills up, with
    items of the same bucket that come twice, as many batches as are still due; which ones is drawn anew every epoch, in
    proportion to what is left.

    Args:
        order: of the items.
        bucket: of each item, [n].
        batch: items of a batch.
        seed: of the order of the batches.
    """

    order: Order
    bucket: NDArray[np.int64]
    batch: int
    seed: int

    @property
    def length(self) -> int:
        return -(-self.order.length // self.batch) * self.batch

    def epoch(self, number: int) -> Numbers:
        items = self.order.epoch(number)
        grouped = items[np.argsort(self.bucket[items], kind="stable")]
        ends = np.cumsum(np.bincount(self.bucket[items]))
        groups = [group for group in np.split(grouped, ends[:-1]) if len(group)]
        whole = [group[: len(group) // self.batch * self.batch].reshape(-1, self.batch) for group in groups]
        due = self.length // self.batch - sum(map(len, whole))
        batches = np.concatenate([*whole, *self._filled(groups, due, number)])
        return batches[_shuffled(len(batches), hash_of("batches", self.seed, number))].reshape(-1)

    def _filled(self, groups: Sequence[Numbers], due: int, number: int) -> list[Numbers]:
        """The rest of some groups, each made a batch, [due] of [1, batch]."""
        rests = np.array([len(group) % self.batch for group in groups])
        uniform = (_bits(len(groups), hash_of("rests", self.seed, number)).astype(np.float64) + 1) / 2.0**64
        with np.errstate(divide="ignore"):
            chosen = np.argsort(np.log(uniform) / rests, kind="stable")[::-1][:due]  # weights without replacement
        return [np.resize(np.roll(groups[place], int(rests[place])), (1, self.batch)) for place in chosen]


class Stream:
    """Epoch after epoch of an order, by position."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._epoch = lru_cache(maxsize=2)(order.epoch)

    @cached_property
    def length(self) -> int:
        """Positions of an epoch."""
        return self.order.length

    def at(self, positions: Sequence[int]) -> Numbers:
        """The items at these positions, [n]."""
        asked = np.asarray(positions, np.int64)
        found = np.empty(len(asked), np.intp)
        for number in np.unique(asked // self.length).tolist():
            inside = asked // self.length == number
            found[inside] = self._epoch(number)[asked[inside] % self.length]
        return found


def order_of(source: Source, seed: int, batch: int = 1, only: Numbers | None = None) -> Order:
    """The order in which a source is trained on.

    Args:
        source: which may be several in one, be read in windows, or have images of several shapes.
        seed: of all that is drawn.
        batch: items of a batch, all of one bucket.
        only: numbers of the items that are trained on; None for all.
    """
    chosen = None if only is None else np.isin(np.arange(len(source)), only)
    order = _order_of_items(source, seed, chosen)
    return order if source.bucket is None else Bucketed(order, source.bucket, batch, seed)


def _order_of_items(source: Source, seed: int, chosen: NDArray[np.bool_] | None = None) -> Order:
    if isinstance(source, Mixture):
        return _mixed(source, seed, chosen)
    count, window = len(source), source.sequential
    whole: Order = Shuffled(count, seed) if window is None else Windowed(count, window, seed)
    return whole if chosen is None else Among(whole, chosen)


def _mixed(source: Mixture, seed: int, chosen: NDArray[np.bool_] | None) -> Order:
    """The sources in their shares; one of which nothing is chosen has none."""
    sizes = tuple(map(len, source.parts))
    each = [None] * len(sizes) if chosen is None else np.split(chosen, np.cumsum(sizes)[:-1])
    shares = tuple(0 if own is not None and not own.any() else n for own, n in zip(each, source.shares, strict=True))
    orders = tuple(
        _order_of_items(part, hash_of("part", seed, place), own)
        for place, (part, own) in enumerate(zip(source.parts, each, strict=True))
    )
    return Weighted(orders, sizes, shares, seed)


def between(order: Order, start: int, count: int) -> Numbers:
    """The items at `count` positions from `start` on, of epoch after epoch."""
    if not count:
        return np.empty(0, np.intp)
    length, stop = order.length, start + count
    parts = []
    for number in range(start // length, -(-stop // length)):
        low, high = max(start, number * length), min(stop, (number + 1) * length)
        parts.append(order.epoch(number)[low - number * length : high - number * length])
    return np.concatenate(parts)


def _bits(count: int, seed: int) -> NDArray[np.uint64]:
    # Unlike Generator.permutation, the raw bits of PCG64 never change between NumPy versions.
    return np.random.PCG64(seed).random_raw(count)


def _shuffled(count: int, seed: int) -> Numbers:
    return np.argsort(_bits(count, seed), kind="stable")
