"""What CUDA graphs would keep, counted where calls are made on tensors without values."""

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter

from ..models.graphs import Graphs
from ..models.recordable import Actor, Invocation
from .meter import Measured, Meter

KEPT = "what graphs keep"
"""The part of a forecast that it is."""


class Pools(Graphs):
    """Stands in for the graphs of a stage: calls are made, and what recorded ones would hold for good is noted.

    That is a pool for all calls without a backward pass, one for all backward passes, one for each call that waits for
    its backward pass while others do, and for every kind of call the places of what goes in and out.

    Args:
        meter: meter that the calls are made in.
    """

    def __init__(self, meter: Meter) -> None:
        super().__init__()
        self._meter = meter
        self._calls = self._backward = self._places = 0
        self._waiting: list[int] = []
        self._number = self._left = 0
        self._kinds: set[Hashable] = set()

    @property
    def bytes(self) -> int:
        """Bytes of all pools."""
        return self._calls + self._backward + sum(self._waiting) + self._places

    def call(self, actor: Actor, told: Mapping[str, Any]) -> Any:
        invocation = Invocation.of(actor, told)
        if not invocation.plain:
            return actor.function(told)
        with self._meter.measured() as seen:
            output = actor.function(told)
        sizes = [x.nbytes for x in (*invocation.tensors, *tree_iter(output)) if isinstance(x, Tensor)]
        kind = invocation.kind
        if invocation.differentiated:
            kind = kind, self._number
            self._wait(seen)
        else:
            self._calls = max(self._calls, seen.peak)
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._places += sum(sizes) * (2 if invocation.differentiated else 1)
        return output

    def begin(self) -> None:
        """The calls from here on wait for another backward pass."""
        self._number = self._left = 0

    @property
    def left(self) -> int:
        """Bytes that the turn's calls keep for its backward pass."""
        return self._left

    def backward(self, size: int) -> None:
        """A backward pass allocates so much beside what is kept for it."""
        self._backward = max(self._backward, size)

    def _wait(self, seen: Measured) -> None:
        if self._number == len(self._waiting):
            self._waiting.append(0)
        self._waiting[self._number] = max(self._waiting[self._number], seen.peak)
        self._number += 1
        self._left += seen.left
