"""What a module trains: its parameters by name, as the pieces of few tensors, for which an update is a single call."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .sharding import Slice, stepped


class Piece(nn.Parameter):
    """A part of a larger parameter, under a name of its own; written to, both are."""

    whole: nn.Parameter

    @classmethod
    def of(cls, whole: nn.Parameter, start: int, shape: Sequence[int]) -> "Piece":
        """`shape` values from `start` on of a tensor of one axis."""
        with torch.no_grad():
            piece = cls(whole[start : start + torch.Size(shape).numel()].view(shape), requires_grad=False)
        piece.whole = whole
        return piece


@dataclass(frozen=True)
class Place:
    """Where a parameter lies: in which of the owned tensors, from where on, and its shape there.

    Of a sharded one that is a slice.
    """

    tensor: int
    start: int
    shape: torch.Size
    slice: Slice | None = None

    @property
    def whole(self) -> torch.Size:
        """The shape of all slices together."""
        return self.shape if self.slice is None else self.slice.of.shape

    def cut(self, value: Tensor) -> Tensor:
        """What lies here of a value of the whole parameter."""
        return value if self.slice is None else self.slice.cut(value)

    def part(self, tensor: Tensor) -> Tensor:
        """The part of a tensor like the owned one."""
        if tensor.shape == self.shape:
            return tensor
        return tensor.detach()[self.start : self.start + self.shape.numel()].view(self.shape)

    def blocks(self, scales: Tensor, size: int) -> Tensor:
        """The entries of `scales`, which has one per `size` values of the owned tensor, that cover this parameter."""
        return scales[self.start // size : -(-(self.start + self.shape.numel()) // size)]


@dataclass(frozen=True)
class Owned:
    """The parameters of a module.

    Args:
        tensors: tensors that an optimizer steps.
        places: name of a parameter -> where in them it lies, in the module's order.
    """

    tensors: tuple[nn.Parameter, ...]
    places: Mapping[str, Place]

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """The parts of tensors like the owned ones, by the names of the parameters."""
        return {name: place.part(tensors[place.tensor]) for name, place in self.places.items()}

    def sharded(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parts, as slices of whole tensors where their parameters are sharded."""
        slices = {name: place.slice for name, place in self.places.items()}
        return {name: part if (of := slices[name]) is None else of.sharded(part) for name, part in parts.items()}


def owned(module: nn.Module, *, but: Collection[str] = ()) -> Owned:
    """What a module trains, parameters of the names `but` left out."""
    wholes: dict[int, nn.Parameter] = {}
    places: dict[str, Place] = {}
    for name, parameter in module.named_parameters():
        if name in but:
            continue
        held = stepped(parameter)
        whole = held.whole if isinstance(held, Piece) else held
        wholes.setdefault(id(whole), whole)
        start = int(held.storage_offset() - whole.storage_offset())
        of = held if isinstance(held, Slice) else None
        places[name] = Place(list(wholes).index(id(whole)), start, held.shape, of)
    return Owned(tuple(wholes.values()), places)


def collect_gradients(module: object) -> None:
    """Moves what a backward pass left to the owned tensors, where a module computes with copies of them."""
    collect = getattr(module, "collect_gradients", None)
    if collect is not None:
        collect()
