"""CUDA graphs of a network's calls: one launch in the place of thousands.

A call and its backward pass are recorded when its kind comes again after one has gone by with its backward pass, in
which libraries choose their kernels, and replayed from then on: the same kernels on the same memory, so that the
numbers are those of the call itself. What changes between calls is copied into the places that were recorded; weights
are read where they are, so that they must stay there.

A graph keeps the memory of its intermediate values. Those of calls without a backward pass share one pool, since such
a call is over when the next begins; so do all backward passes. A call that waits for its backward pass has a pool to
itself, which the calls of other turns have after it.
"""

import logging
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_iter

from .recordable import Actor, Invocation
from .recorded import Differentiated, Recorded, Slot
from .sums import Sums

LOG = logging.getLogger(__name__)

MOST = 96
"""Graphs of a stage; calls of further kinds, such as those of ever new shapes, are launched kernel by kernel."""
MOVES = 3
"""How often a graph is recorded anew because weights have moved."""


class Graphs:
    """The graphs of the networks of a stage."""

    def __init__(self) -> None:
        self._gone_by: set[Hashable] = set()
        self._recorded: dict[Hashable, Recorded | None] = {}
        self._slots: list[Slot] = []
        self._pools: dict[str, Any] = {}
        self._sums: dict[Hashable, Sums] = {}
        self._moves: Counter[Hashable] = Counter()

    def __deepcopy__(self, memo: Any) -> "Graphs":
        """An empty recorder: graphs are of weights in their places, and a copied network has others."""
        return Graphs()

    def call(self, actor: Actor, told: Mapping[str, Any]) -> Any:
        """`actor.function(told)`; tensors among the arguments may have other values at each call."""
        invocation = Invocation.of(actor, told)
        if not invocation.recordable:
            return actor.function(told)
        slot = self._slot() if invocation.differentiated else None
        kind = (invocation.kind, None if slot is None else self._slots.index(slot))
        if kind not in self._recorded:
            if len(self._recorded) == MOST:
                return actor.function(told)
            if kind not in self._gone_by:
                return self._itself(kind, actor, told)
            self._recorded[kind] = self._record(invocation, slot)
        recorded = self._recorded[kind]
        if recorded is None:
            return actor.function(told)
        if recorded.places != invocation.places:
            self._moved(kind, actor)
            return actor.function(told)
        return recorded(invocation)

    def _itself(self, kind: Hashable, actor: Actor, told: Mapping[str, Any]) -> Any:
        """The call, which has gone by when its backward pass is under way, or at once where it has none."""
        output = actor.function(told)
        nodes = {y.grad_fn for y in tree_iter(output) if isinstance(y, Tensor) and y.grad_fn is not None}
        for node in nodes:
            node.register_hook(lambda *_: self._gone_by.add(kind))
        if not nodes:
            self._gone_by.add(kind)
        return output

    def _moved(self, kind: Hashable, actor: Actor) -> None:
        """The graph reads where weights are no more; those that move again and again have none."""
        self._recorded.pop(kind)
        self._moves[kind] += 1
        if self._moves[kind] == MOVES:
            LOG.warning("weights of %s move, so that its calls are launched kernel by kernel", type(actor.net).__name__)
            self._recorded[kind] = None

    def _slot(self) -> Slot:
        """The first that no call waits in."""
        for slot in self._slots:
            if slot.free:
                return slot
        self._slots.append(Slot(torch.cuda.graph_pool_handle()))
        return self._slots[-1]

    def _pool(self, name: str) -> Any:
        return self._pools.setdefault(name, torch.cuda.graph_pool_handle())

    def _sums_of(self, weights: Sequence[nn.Parameter]) -> Sums:
        alike = tuple((weight.shape, weight.dtype, weight.grad_dtype) for weight in weights)
        if alike not in self._sums:
            self._sums[alike] = Sums(weights)
        return self._sums[alike]

    def _record(self, invocation: Invocation, slot: Slot | None) -> Recorded | None:
        try:
            if slot is None:
                return Recorded.of(invocation, self._pool("calls"))
            return Differentiated.of(invocation, slot, self._sums_of(invocation.trained), self._pool("backward"))
        except RuntimeError as error:  # the call waits for the device, or memory ran out
            torch.cuda.synchronize()
            name = type(invocation.actor.net).__name__
            LOG.warning("calls of %s are launched kernel by kernel: %s", name, str(error).splitlines()[0])
            return None
