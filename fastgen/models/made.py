"""A network whose tensors are made one by one, where all of them at once take more memory than there is.

Each is made on the device of the one it is made of.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .adapters import alias
from .casting import renewed, saved
from .offload import move, moved_of

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

    def by_block(self, device: torch.device | str) -> nn.Module:
        """The network on a device, without its blocks' weights, which are made when a block is called and then let go.

        Its results are those of `whole`. Which weights these are says `moved_of`; they are made where `like` is, and
        between calls nothing is in their place. A network that has no such blocks is whole.
        """
        net = alias(self.like)
        for name, block, weights in list(moved_of(net)):
            slots = list(_emptied(name, block, weights))
            for path, module in block.named_modules(prefix=name):  # a network may call what is in a block by itself
                below = [slot for slot in slots if slot.path.startswith(f"{path}.")]
                visit = _Visit(below, lambda slot: self.change(slot.path, slot.source.detach()).to(device))
                module.register_forward_pre_hook(visit.begin)
                module.register_forward_hook(visit.end, always_call=True)
        move(renewed(net, lambda path, tensor: self.change(path, tensor).to(device)), device)
        return net

    @cached_property
    def _held(self) -> dict[str, Tensor]:
        return {path: tensor.detach() for path, tensor in saved(self.like)}


def path_of(name: str) -> str:
    """A state dict's name of a tensor as `saved` gives it."""
    module, _, slot = name.rpartition(".")
    return f"{module}.{slot}"


class _Slot(NamedTuple):
    """A place among a layer's parameters that is empty between calls, and what fills it is made of."""

    parameters: dict[str, nn.Parameter | None]
    name: str
    path: str
    source: nn.Parameter


@dataclass
class _Visit:
    """A call of a module, during which none of the slots below it is empty."""

    slots: Sequence[_Slot]
    made: Callable[[_Slot], Tensor]
    filled: Sequence[_Slot] = ()

    def begin(self, _module: nn.Module, _args: Any) -> None:
        self.filled = [slot for slot in self.slots if slot.parameters[slot.name] is None]
        for slot in self.filled:
            slot.parameters[slot.name] = nn.Parameter(self.made(slot), requires_grad=False)

    def end(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        for slot in self.filled:
            slot.parameters[slot.name] = None
        self.filled = ()


def _emptied(name: str, block: nn.Module, weights: Sequence[nn.Parameter]) -> Iterator[_Slot]:
    """Takes these weights out of the block of that name."""
    wanted = {id(weight) for weight in weights}
    for path, module in block.named_modules(prefix=name):
        for slot, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in wanted:
                module._parameters[slot] = None
                yield _Slot(module._parameters, slot, f"{path}.{slot}", parameter)
