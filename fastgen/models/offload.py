"""A frozen network whose blocks stay in main memory, and are on the device only while they are computed.

A block's weights are copied when it is called, those of the next one while it computes: the one that was called after
it, or in a backward pass that computes blocks again, before it. What a layer computes with is a parameter of its own,
put in its slot for the call; autograd keeps it for as long as the block's gradients need it.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MOSTLY = 0.85
"""Share of a block's weights in lists of blocks from which on these are the blocks."""
CHUNK = 2**28  # bytes; page-locked memory is given out in powers of two


class Slot(NamedTuple):
    """A place among a layer's parameters, and what is there while the block is not on the device."""

    parameters: dict[str, nn.Parameter | None]
    name: str
    host: nn.Parameter


class Fetched(NamedTuple):
    """Weights on the device, and what to wait for before they are read; None where nothing is to be waited for."""

    weights: dict[int, nn.Parameter]
    ready: torch.cuda.Event | None


class BlockSwap:
    """Moves the blocks of a network, and of its aliases, to the device and away.

    Args:
        net: frozen network in main memory, outside which nobody computes with its blocks' weights; all else of it goes
            to the device for good.
        device: device that it is called on.
    """

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self.device = device
        self.hosts: dict[str, list[nn.Parameter]] = {}
        """Block -> its weights in main memory."""
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots: WeakKeyDictionary[nn.Module, list[Slot]] = WeakKeyDictionary()
        self._next: dict[str, str] = {}
        self._previous: dict[str, str] = {}
        self._last: str | None = None
        self._coming: dict[str, Fetched] = {}
        first = next(net.parameters())  # by which others tell where the network is
        for name, block in blocks_of(net):
            weights = [p for p in block.parameters() if p.ndim > 1]
            if weights and all(p is not first for p in block.parameters()):
                self.hosts[name] = weights
                block.register_forward_pre_hook(partial(self._arrive, name))
                block.register_forward_hook(self._leave, always_call=True)
        held = {id(p) for weights in self.hosts.values() for p in weights}
        _lock([p for weights in self.hosts.values() for p in weights], device)
        _move(net, device, but=held)
        net.register_forward_pre_hook(self._begin)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """An alias has the same weights, and so the same swap; in a copy there is nothing that it would move."""
        return self

    def serves(self, net: nn.Module) -> bool:
        """Whether blocks of this network are moved."""
        wanted = {id(p) for weights in self.hosts.values() for p in weights}
        return any(id(p) in wanted for p in net.parameters())

    def _begin(self, _net: nn.Module, _args: Any) -> None:
        self._last = None

    def _arrive(self, name: str, block: nn.Module, _args: Any) -> None:
        slots = self._slots_of(name, block)
        if not slots:
            return
        weights = self._taken(name)
        for slot in slots:
            slot.parameters[slot.name] = weights[id(slot.host)]
        following = self._following(name)
        if following is not None:
            self._coming[following] = self._fetch(following)

    def _leave(self, block: nn.Module, _args: Any, _output: Any) -> None:
        for slot in self._slots.get(block, ()):
            slot.parameters[slot.name] = slot.host

    def _taken(self, name: str) -> dict[int, nn.Parameter]:
        """A block's weights on the device; what had been fetched for another one is dropped."""
        found = self._coming.pop(name, None) or self._fetch(name)
        for fetched in (found, *self._coming.values()):  # memory is given back in the order of the main stream
            if fetched.ready is not None:
                torch.cuda.current_stream(self.device).wait_event(fetched.ready)
        self._coming.clear()
        return found.weights

    def _following(self, name: str) -> str | None:
        """The block that will be called next, as far as it is known."""
        if torch._C._current_graph_task_id() != -1:  # within a backward pass
            return self._previous.get(name)
        if self._last is not None:
            self._next[self._last], self._previous[name] = name, self._last
        self._last = name
        return self._next.get(name)

    def _fetch(self, name: str) -> Fetched:
        """Begins to copy a block's weights, which the main stream allocates: it also gives them back."""
        hosts = self.hosts[name]
        copies = [torch.empty_like(host, device=self.device) for host in hosts]
        ready = None
        if self._stream is None:
            _copy(hosts, copies)
        else:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self._stream):
                _copy(hosts, copies)
                ready = self._stream.record_event()
        parameters = [nn.Parameter(copy, requires_grad=False) for copy in copies]
        return Fetched({id(host): p for host, p in zip(hosts, parameters, strict=True)}, ready)

    def _slots_of(self, name: str, block: nn.Module) -> list[Slot]:
        if block not in self._slots:
            hosts = {id(host): host for host in self.hosts[name]}
            self._slots[block] = [
                Slot(module._parameters, slot, hosts[id(p)])
                for module in block.modules()
                for slot, p in module._parameters.items()
                if id(p) in hosts
            ]
        return self._slots[block]


def swap_blocks(net: nn.Module, device: torch.device) -> BlockSwap:
    """Leaves a network's blocks in main memory and moves the rest of it to a device, see `BlockSwap`."""
    swap = BlockSwap(net, device)
    net.swap = swap  # type: ignore[assignment]
    return swap


def is_swapped(net: nn.Module) -> bool:
    """Whether blocks of a network are in main memory between their calls."""
    swap = getattr(net, "swap", None)
    return isinstance(swap, BlockSwap) and swap.serves(net)


def blocks_of(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(name, block): members of module lists that are not, for the most part, lists of blocks themselves."""
    for name, child in module.named_children():
        here = f"{path}.{name}".lstrip(".")
        if not isinstance(child, nn.ModuleList):
            yield from blocks_of(child, here)
            continue
        for number, member in child.named_children():
            inner = list(blocks_of(member, f"{here}.{number}"))
            inside = sum(_count(block) for _, block in inner)
            yield from inner if inside >= MOSTLY * _count(member) else [(f"{here}.{number}", member)]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@torch.no_grad()
def _copy(hosts: Sequence[Tensor], copies: Sequence[Tensor]) -> None:
    for host, copy in zip(hosts, copies, strict=True):
        copy.copy_(host, non_blocking=True)


@torch.no_grad()
def _lock(parameters: Sequence[nn.Parameter], device: torch.device) -> None:
    """Puts parameters one by one into memory that the device can read by itself."""
    left = torch.empty(0, dtype=torch.uint8)
    for parameter in parameters:
        size = parameter.numel() * parameter.element_size()
        if left.numel() < size:
            left = torch.empty(max(CHUNK, size), dtype=torch.uint8, pin_memory=device.type == "cuda")
        place, left = left[:size], left[-(-size // 512) * 512 :]
        held = place.view(parameter.dtype).view(parameter.shape)
        parameter.data = held.copy_(parameter.data)


@torch.no_grad()
def _move(net: nn.Module, device: torch.device, *, but: set[int]) -> None:
    for module in net.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in but:
                parameter.data = parameter.data.to(device)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
