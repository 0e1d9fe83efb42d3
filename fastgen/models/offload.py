"""A frozen network whose blocks stay in main memory, and are on the device only while they are computed.

A block's weights are copied when it is called, those of the next one while it computes: the one that was called after
it, or in a backward pass that computes blocks again, before it. What a layer computes with is a parameter of its own,
put in its slot for the call; autograd keeps it for as long as the block's gradients need it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

MOSTLY = 0.85
"""Share of a block's weights in lists of blocks from which on these are the blocks."""
CHUNK, ALIGNED = 2**28, 512  # bytes; page-locked memory is given out in powers of two


class Lane:
    """Copies that a device makes beside what it computes; on the CPU they are made at once.

    Args:
        device: device whose memory is copied to and from.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def copying(self) -> Iterator[None]:
        """Within, copies go this way, once what was computed so far is there."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def mark(self) -> torch.cuda.Event | None:
        """The end of the copies so far."""
        return None if self._stream is None else self._stream.record_event()

    def wait(self, mark: torch.cuda.Event | None) -> None:
        """What is computed from here on finds the copies before a mark done."""
        if mark is not None:
            torch.cuda.current_stream(self._device).wait_event(mark)

    def settle(self) -> None:
        """Waits, on the host, until all copies are done."""
        if self._stream is not None:
            self._stream.synchronize()


class Slot(NamedTuple):
    """A place among a layer's parameters, and what is there while the block is not on the device."""

    parameters: dict[str, nn.Parameter | None]
    name: str
    host: nn.Parameter


class Fetched(NamedTuple):
    """Weights on the device by those in main memory, and the mark of their copies."""

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
        self._lane = Lane(device)
        self._slots: WeakKeyDictionary[nn.Module, list[Slot]] = WeakKeyDictionary()
        self._filled: dict[nn.Module, Sequence[Slot]] = {}
        self._next: dict[str, str] = {}
        self._previous: dict[str, str] = {}
        self._last: str | None = None
        self._coming: dict[str, Fetched] = {}
        for name, block, weights in moved_of(net):
            self.hosts[name] = weights
            for module in block.modules():  # a network may call what is in a block by itself
                if any(p.ndim > 1 for p in module.parameters()):
                    arrive = self._arrive if module is block else self._visit
                    module.register_forward_pre_hook(partial(arrive, name))
                    module.register_forward_hook(self._leave, always_call=True)
        held = {id(p) for weights in self.hosts.values() for p in weights}
        hosts = [p for weights in self.hosts.values() for p in weights]
        for host, place in zip(hosts, locked_like(hosts, device), strict=True):
            host.data = place.copy_(host.data)
        move(net, device, but=held)
        net.register_forward_pre_hook(self._begin)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The swap itself: an alias of the network shares its weights, and in a real copy there are none to move."""
        return self

    def serves(self, net: nn.Module) -> bool:
        """Whether blocks of this network are moved."""
        wanted = {id(p) for weights in self.hosts.values() for p in weights}
        return any(id(p) in wanted for p in net.parameters())

    def _begin(self, _net: nn.Module, _args: Any) -> None:
        self._last = None

    def _arrive(self, name: str, block: nn.Module, _args: Any) -> None:
        if not self._slots_of(name, block):
            return
        self._fill(block, self._slots_of(name, block), self._taken(name))
        following = self._following(name)
        if following is not None:
            self._coming[following] = self._fetch(following)

    def _visit(self, name: str, module: nn.Module, _args: Any) -> None:
        """Brings the weights of a module in a block that is called by itself, and leaves the order of blocks alone."""
        slots = [slot for slot in self._slots_of(name, module) if slot.parameters[slot.name] is slot.host]
        if slots:
            fetched = self._copied([slot.host for slot in slots])
            self._lane.wait(fetched.ready)
            self._fill(module, slots, fetched.weights)

    def _fill(self, module: nn.Module, slots: Sequence[Slot], weights: Mapping[int, nn.Parameter]) -> None:
        for slot in slots:
            slot.parameters[slot.name] = weights[id(slot.host)]
        self._filled[module] = slots

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        for slot in self._filled.pop(module, ()):
            slot.parameters[slot.name] = slot.host

    def _taken(self, name: str) -> dict[int, nn.Parameter]:
        """A block's weights on the device; what had been fetched for another one is dropped."""
        found = self._coming.pop(name, None) or self._fetch(name)
        for fetched in (found, *self._coming.values()):  # memory is given back in the order of the main stream
            self._lane.wait(fetched.ready)
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
        """Begins to copy a block's weights."""
        return self._copied(self.hosts[name])

    def _copied(self, hosts: Sequence[nn.Parameter]) -> Fetched:
        """Begins to copy weights, for which the main stream allocates memory: it also gives it back."""
        copies = [torch.empty_like(host, device=self.device) for host in hosts]
        with self._lane.copying(), torch.no_grad():
            for host, copy in zip(hosts, copies, strict=True):
                copy.copy_(host, non_blocking=True)
        parameters = [nn.Parameter(copy, requires_grad=False) for copy in copies]
        return Fetched({id(host): p for host, p in zip(hosts, parameters, strict=True)}, self._lane.mark())

    def _slots_of(self, name: str, module: nn.Module) -> list[Slot]:
        """Those of a block, or of a module in it, that are for weights which wait in main memory."""
        if module not in self._slots:
            hosts = {id(host): host for host in self.hosts[name]}
            for part in module.modules():  # while what is in their places waits in main memory too
                self._slots.setdefault(part, list(_slots_below(part, hosts)))
        return self._slots[module]


def _slots_below(module: nn.Module, hosts: Mapping[int, nn.Parameter]) -> Iterator[Slot]:
    for part in module.modules():
        for slot, p in part._parameters.items():
            if id(p) in hosts:
                yield Slot(part._parameters, slot, hosts[id(p)])


def swap_blocks(net: nn.Module, device: torch.device) -> BlockSwap:
    """Leaves a network's blocks in main memory and moves the rest of it to a device, see `BlockSwap`."""
    swap = BlockSwap(net, device)
    net.swap = swap  # type: ignore[assignment]
    return swap


def is_swapped(net: nn.Module) -> bool:
    """Whether blocks of a network are in main memory between their calls."""
    swap = getattr(net, "swap", None)
    return isinstance(swap, BlockSwap) and swap.serves(net)


def moved_of(net: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Parameter]]]:
    """(name, block, weights): what of a network is moved."""
    first = next(net.parameters())  # by which others tell where the network is
    for name, block in blocks_of(net):
        weights = [p for p in block.parameters() if p.ndim > 1]
        if weights and all(p is not first for p in block.parameters()):
            yield name, block, weights


def bytes_with_swap(net: nn.Module) -> int:
    """Bytes of a network's weights on the device while it is called: two blocks, and all that is not moved."""
    blocks = [sum(p.nbytes for p in weights) for _, _, weights in moved_of(net)]
    return sum(p.nbytes for p in net.parameters()) - sum(blocks) + sum(sorted(blocks)[-2:])


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


def locked_like(tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Tensors like these, one by one, in main memory that the device can read and write by itself."""
    left = torch.empty(0, dtype=torch.uint8)
    for tensor in tensors:
        if left.numel() < tensor.nbytes:
            left = torch.empty(max(CHUNK, tensor.nbytes), dtype=torch.uint8, pin_memory=device.type == "cuda")
        place, left = left[: tensor.nbytes], left[-(-tensor.nbytes // ALIGNED) * ALIGNED :]
        yield place.view(tensor.dtype).view(tensor.shape)


@torch.no_grad()
def move(net: nn.Module, device: torch.device | str, *, but: Collection[int] = ()) -> None:
    """Moves a network's parameters and buffers to a device, but for the parameters of these ids."""
    for module in net.modules():
        for parameter in module._parameters.values():
            if parameter is not None and id(parameter) not in but:
                parameter.data = parameter.data.to(device)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
