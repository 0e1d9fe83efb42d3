"""A network whose tensors are made one by one, where all of them at once take more memory than there is.

Each is made on the device of the one it is made of: of a network on a GPU, in a hundredth of a CPU's time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from .adapters import alias
from .casting import renewed, saved

Change = Callable[[str, Tensor], Tensor]
"""(path as in `saved`, tensor) -> the tensor that comes in its place; the given one is not written to."""


def unchanged(_: str, tensor: Tensor) -> Tensor:
    """The tensor itself: no change."""
    return tensor


def in_float32(_: str, tensor: Tensor) -> Tensor:
    """The tensor in float32, itself where it is so already; whole numbers keep their dtype."""
    return tensor.float() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Made:
    """A network like another one, of which each tensor is made when it is asked for, anew each time.

    Args:
        like: network whose tensors are changed on the way out; it stays as it is.
        change: what is made of each of its tensors.
    """

    like: nn.Module
    change: Change = unchanged

    def then(self, change: Change) -> "Made":
        """The same with a further change of each tensor."""
        return Made(self.like, lambda path, tensor: change(path, self.change(path, tensor)))

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, parameter), one after the other, those in two places once."""
        for name, parameter in self.like.named_parameters():
            yield name, self.change(path_of(name), parameter.detach())

    def __getitem__(self, name: str) -> Tensor:
        """The tensor of a name in the state dict; raises KeyError where there is none."""
        return self.change(path_of(name), self._held[path_of(name)])

    def whole(self, device: torch.device | str) -> nn.Module:
        """The whole network on a device; tensors that nothing changed may be shared with `like`."""
        return renewed(alias(self.like), lambda path, tensor: self.change(path, tensor).to(device)).to(device)

    @cached_property
    def _held(self) -> dict[str, Tensor]:
        return {path: tensor.detach() for path, tensor in saved(self.like)}


def path_of(name: str) -> str:
    """A state dict's name of a tensor as `saved` gives it."""
    module, _, slot = name.rpartition(".")
    return f"{module}.{slot}"
