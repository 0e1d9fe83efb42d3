"""What code would launch, compute, move and hold on a GPU, counted on tensors without values."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

BLOCK = 512
"""Bytes that PyTorch's allocator rounds up to."""


def _product(_self: Tensor, a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """FLOPs of a product [n, k] [k, m]."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


FORMULAS = {**flop_registry, torch.ops.aten.addmm_: _product}
"""FLOPs by operation; PyTorch's own formulas leave out the product in place."""


@dataclass(frozen=True)
class Tally:
    """Work of some operations.

    Attributes:
        launches: operations that are no views; about as many kernels.
        again: launches of these by blocks that are computed again.
        half_flops, full_flops: of matrix products, convolutions and attentions in half precision, and in fp32.
        moved: bytes that all other operations read and write.
    """

    launches: int = 0
    again: int = 0
    half_flops: int = 0
    full_flops: int = 0
    moved: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations in half and in full precision."""
        return self.half_flops + self.full_flops

    def __add__(self, other: "Tally") -> "Tally":
        return self.plus(other, 1)

    def __sub__(self, other: "Tally") -> "Tally":
        return self.plus(other, -1)

    def __mul__(self, times: int) -> "Tally":
        return Tally().plus(self, times)

    def plus(self, other: "Tally", times: int) -> "Tally":
        """The sum with `times` times the other's work."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Tally(*(mine + times * theirs for mine, theirs in pairs))


class Meter(TorchDispatchMode):
    """Counts the work of what is dispatched within, and the bytes of the tensors that live at once.

    Attributes:
        work: of all operations so far.
        level, peak: bytes allocated within that live now, and at most.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = Tally()
        self.level = self.peak = 0
        self._again = False
        self._living: dict[int, tuple[ref[Any], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        out = func(*args, **told)
        read, written = list(_tensors((args, told))), list(_tensors(out))
        known = {x.untyped_storage()._cdata for x in read}
        fresh = [x for x in written if x.untyped_storage()._cdata not in known]
        self.hold(fresh)
        if (fresh or func._schema.is_mutable) and func.namespace != "prim" and "empty" not in str(func):
            self.add(_work(func, args, told, out, [*read, *(fresh or written)]))
        return out

    def hold(self, tensors: Sequence[Tensor]) -> None:
        """Tensors that were allocated within."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key = id(storage)
            if key not in self._living:
                self._take(key, storage, -(-storage.nbytes() // BLOCK) * BLOCK)

    def add(self, work: Tally) -> None:
        """Work that was done, or would have been."""
        self.work += replace(work, again=work.launches) if self._again else work

    @contextmanager
    def counting(self, *, again: bool) -> Iterator[None]:
        """Within, whether work is a block's that is computed again."""
        before, self._again = self._again, again
        try:
            yield
        finally:
            self._again = before

    def spike(self, size: int) -> None:
        """Counts bytes that are allocated for a moment."""
        self.peak = max(self.peak, self.level + size)

    @contextmanager
    def measured(self) -> Iterator["Measured"]:
        """Within, peaks are seen alone; what is yielded is filled in when it is over."""
        found, before, level, highest = Measured(), self.work, self.level, self.peak
        self.peak = level
        try:
            yield found
        finally:
            found.work, found.peak, found.left = self.work - before, self.peak - level, self.level - level
            self.peak = max(self.peak, highest)

    def _take(self, key: int, storage: Any, size: int) -> None:
        def drop(_: Any) -> None:
            del self._living[key]
            self.level -= size

        self._living[key] = ref(storage, drop), size
        self.level += size
        self.peak = max(self.peak, self.level)


@dataclass
class Measured:
    """A part of what a meter saw: its work, its peak above the start, and what it left allocated."""

    work: Tally = Tally()
    peak: int = 0
    left: int = 0


def _tensors(told: Any) -> Iterator[Tensor]:
    return (x for x in tree_iter(told) if isinstance(x, Tensor))


def _work(func: Any, args: Any, told: Any, out: Any, touched: Sequence[Tensor]) -> Tally:
    """The work of one operation."""
    formula = FORMULAS.get(func._overloadpacket)
    if formula is None:
        return Tally(launches=1, moved=sum(x.numel() * x.element_size() for x in touched))
    count = int(formula(*args, **told, out_val=out))
    half = touched[0].element_size() <= 2
    return Tally(1, half_flops=count if half else 0, full_flops=0 if half else count)
