"""The values that a role has of a shared network's parameters: masters in one tensor, and copies to compute with.

The masters are in fp32 and part of no graph. Layers compute with copies in their own dtype, which are made anew before
the first call after the masters changed, whoever wrote to them: PyTorch counts the writes.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from .owned import Piece


@dataclass(frozen=True)
class Seat:
    """A parameter of a layer that every role has a value of its own for.

    Args:
        name: name of that value in state dicts.
        module, slot: place of the value while its role acts.
        shape: shape of the value.
        dtype: dtype that the layer computes with.
        factor: number that the layer multiplies the value by.
    """

    name: str
    module: nn.Module = field(repr=False)
    slot: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    factor: float = 1.0

    @property
    def base(self) -> nn.Parameter | None:
        """What is there while no role with a value acts."""
        return self.module._parameters[self.slot]


@dataclass(frozen=True)
class Span:
    """Seats of one dtype and factor: their place among the masters, and in one tensor what layers compute with."""

    masters: slice
    factor: float
    copied: bool
    parameters: tuple[nn.Parameter, ...] = field(repr=False)
    work: Tensor = field(repr=False)


class Bank:
    """One role's values of all seats.

    Args:
        groups: seats that are called together or not at all; each group's masters are one tensor, which has a gradient
            if one of its seats has.
        device: device of the values.
    """

    def __init__(self, groups: Sequence[Sequence[Seat]], device: torch.device) -> None:
        self._flats = [Flat(seats, device) for seats in groups]
        self.pieces = {name: piece for flat in self._flats for name, piece in flat.pieces.items()}
        """The masters by the names of their seats."""
        self.working = {name: parameter for flat in self._flats for name, parameter in flat.working.items()}
        """What layers compute with, likewise; the same parameters for good."""

    def refresh(self) -> None:
        """Makes those copies anew whose masters have changed."""
        for flat in self._flats:
            flat.refresh()

    def requires_grad_(self, wanted: bool) -> None:
        """Whether a graph is kept to these values."""
        for parameter in self.working.values():
            parameter.requires_grad_(wanted)

    def collect(self) -> None:
        """Moves the gradients of what layers compute with to the masters' own, which add up in fp32."""
        for flat in self._flats:
            flat.collect()


class Flat:
    """Masters in one tensor."""

    def __init__(self, seats: Sequence[Seat], device: torch.device) -> None:
        count = sum(torch.Size(seat.shape).numel() for seat in seats)
        self.master = nn.Parameter(torch.zeros(count, device=device), requires_grad=False)
        self.pieces: dict[str, Piece] = {}
        self.working: dict[str, nn.Parameter] = {}
        self._spans = list(self._laid_out(seats))
        self._copied: int | None = None

    @torch.no_grad()
    def refresh(self) -> None:
        """See `Bank.refresh`."""
        if self._copied == self.master._version:
            return
        for span in self._spans:
            if span.copied:
                torch.mul(self.master[span.masters], span.factor, out=span.work)
        self._copied = self.master._version

    @torch.no_grad()
    def collect(self) -> None:
        """See `Bank.collect`; where no layer was called, there is no gradient."""
        if all(parameter.grad is None for parameter in self.working.values()):
            return
        if self.master.grad is None:
            self.master.grad = torch.zeros_like(self.master)
        for span in self._spans:
            found = [torch.zeros_like(p) if p.grad is None else p.grad for p in span.parameters]
            gathered: Tensor = _flatten_dense_tensors(found)
            self.master.grad[span.masters].add_(gathered, alpha=span.factor)
            for parameter in span.parameters:
                parameter.grad = None

    def _laid_out(self, seats: Sequence[Seat]) -> list[Span]:
        alike: dict[tuple[torch.dtype, float], list[Seat]] = defaultdict(list)
        for seat in seats:
            alike[seat.dtype, seat.factor].append(seat)
        spans: list[Span] = []
        start = 0
        for (dtype, factor), group in alike.items():
            sizes = [torch.Size(seat.shape).numel() for seat in group]
            masters = slice(start, start + sum(sizes))
            span = self._span(group, masters, dtype, factor)
            for seat, place, parameter in zip(group, accumulate(sizes, initial=start), span.parameters, strict=False):
                self.pieces[seat.name] = Piece.of(self.master, place, seat.shape)
                self.working[seat.name] = parameter
            spans.append(span)
            start = masters.stop
        return spans

    @torch.no_grad()
    def _span(self, seats: Sequence[Seat], masters: slice, dtype: torch.dtype, factor: float) -> Span:
        values = self.master.detach()[masters]
        copied = dtype != values.dtype or factor != 1
        work = torch.empty_like(values, dtype=dtype) if copied else values
        shapes = [torch.empty(seat.shape, device="meta") for seat in seats]
        parts = _unflatten_dense_tensors(work, shapes)
        return Span(masters, factor, copied, tuple(nn.Parameter(p, requires_grad=False) for p in parts), work)
