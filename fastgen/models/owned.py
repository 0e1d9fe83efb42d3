"""What a module trains: its parameters by name, as the pieces of few tensors, for which an update is a single call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


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
    """Where a parameter lies: in which of the owned tensors, from where on, and its shape."""

    tensor: int
    start: int
    shape: torch.Size

    def part(self, tensor: Tensor) -> Tensor:
        """The part of a tensor like the owned one."""
        if tensor.shape == self.shape:
            return tensor
        return tensor.detach()[self.start : self.start + self.shape.numel()].view(self.shape)


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


def owned(module: nn.Module) -> Owned:
    """What a module trains."""
    wholes: dict[int, nn.Parameter] = {}
    places: dict[str, Place] = {}
    for name, parameter in module.named_parameters():
        whole = parameter.whole if isinstance(parameter, Piece) else parameter
        wholes.setdefault(id(whole), whole)
        start = int(parameter.storage_offset() - whole.storage_offset())
        places[name] = Place(list(wholes).index(id(whole)), start, parameter.shape)
    return Owned(tuple(wholes.values()), places)


def collect_gradients(module: object) -> None:
    """Moves what a backward pass left to the owned tensors, where a module computes with copies of them."""
    collect = getattr(module, "collect_gradients", None)
    if collect is not None:
        collect()
