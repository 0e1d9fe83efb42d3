"""Networks whose parameters lie in slices on several processes, and are brought together block by block (FSDP2).

Each process holds a slice along the first axis of every parameter, with that of its gradient, moments and average. Who
steps, averages and stores parameters sees the slices as plain tensors, see `Slice`. All processes make the same calls
of a sharded network, and ask for whole tensors at the same time.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

Sharding = Literal["none", "full", "host"]
"""Nothing is sliced; over all processes; or over those of each host, whose slices the other hosts have too (HSDP)."""

BLOCK = 2**26  # values; blocks that have more are brought together in smaller ones


class Slice(nn.Parameter):
    """What this process holds of a sharded parameter, in the same memory."""

    of: DTensor

    @classmethod
    def held(cls, parameter: DTensor) -> "Slice":
        """The slice of a sharded parameter."""
        held = cls(parameter.to_local().detach(), requires_grad=False)
        held.of = parameter
        return held

    def cut(self, value: Tensor) -> Tensor:
        """The slice of a whole tensor like the parameter."""
        mesh, last = self.of.device_mesh, self.of.device_mesh.ndim - 1
        rows = -(-len(value) // mesh.size(last))
        start = mesh.get_local_rank(last) * rows
        return value[start : start + rows]

    def sharded(self, value: Tensor) -> DTensor:
        """A tensor like the slice, as that slice of a whole one."""
        mesh, shape, stride = self.of.device_mesh, self.of.shape, self.of.stride()
        local = value.detach().to(self.device)
        made: DTensor = DTensor.from_local(local, mesh, self.of.placements, run_check=False, shape=shape, stride=stride)
        return made


def mesh_of(device: torch.device, sharding: Sharding) -> DeviceMesh:
    """The processes that share slices, before them an axis of those that hold the same."""
    processes = dist.get_world_size()
    near = int(os.environ.get("LOCAL_WORLD_SIZE", processes)) if sharding == "host" else processes
    shape, names = ((processes // near, near), ("hosts", "slices")) if near < processes else ((near,), ("slices",))
    return init_device_mesh(device.type, shape, mesh_dim_names=names)


def shard(net: nn.Module, mesh: DeviceMesh, *, but: Collection[nn.Parameter] = ()) -> None:
    """Slices the parameters of a network, in place, all `but` those that stay whole."""
    blocks = list(_blocks(net))
    for module in [*blocks, net]:
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=set(but))
    for block in blocks:
        for inner in _inside(block):
            if (place := next(_sharded_in(inner), None)) is not None:
                visit = _Visit(block, *place)
                inner.register_forward_pre_hook(visit.begin, with_kwargs=True)
                inner.register_forward_hook(visit.end)
    for parameter in net.parameters():
        if isinstance(parameter, DTensor):
            parameter.slice = Slice.held(parameter)  # type: ignore[attr-defined]


@dataclass
class _Visit:
    """A call of a module in a block. One that the network makes by itself is to FSDP2 a call of the block.

    Args:
        block: block that the module lies in.
        parameters: parameters of a layer, in the module, which are brought together with the block's.
        name: of a sharded one of them.
    """

    block: Any
    parameters: dict[str, nn.Parameter | None]
    name: str
    alone: bool = False

    def begin(self, _module: nn.Module, args: Any, kwargs: Any) -> Any:
        self.alone = isinstance(self.parameters[self.name], DTensor)
        return self.block._get_fsdp_state()._pre_forward(self.block, args, kwargs) if self.alone else None

    def end(self, _module: nn.Module, args: Any, output: Any) -> Any:
        return self.block._get_fsdp_state()._post_forward(self.block, args, output) if self.alone else None


def _sharded_in(module: nn.Module) -> Iterator[tuple[dict[str, nn.Parameter | None], str]]:
    """The places of sharded parameters in a module, but for what is brought together by itself."""
    for part in (module, *_inside(module)):
        yield from ((part._parameters, name) for name, p in part._parameters.items() if isinstance(p, DTensor))


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    """What is in a module, but for what is brought together by itself."""
    for child in module.children():
        if not isinstance(child, FSDPModule):
            yield child
            yield from _inside(child)


def bytes_together(net: nn.Module) -> int:
    """Bytes of a network's parameters that are whole at once: what is in no block, and two blocks."""
    known: set[int] = set()
    sizes = []
    for module in [*_blocks(net), net]:
        own = [p for p in module.parameters() if id(p) not in known]
        known.update(map(id, own))
        sizes.append(sum(p.nbytes for p in own))
    return sizes[-1] + sum(sorted(sizes[:-1])[-2:])


def stepped(parameter: nn.Parameter) -> nn.Parameter:
    """What an optimizer steps of a parameter: this process's slice where it is sharded."""
    held: nn.Parameter = getattr(parameter, "slice", parameter)
    return held


def whole(value: Tensor) -> Tensor:
    """A tensor as one; of a sharded one every process gets it, and all ask at once."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach()


def load(module: nn.Module, values: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """`load_state_dict` of whole tensors, of which a sharded module takes its slices."""
    held = {name: stepped(parameter) for name, parameter in module.named_parameters(remove_duplicate=False)}
    slices = {name: of for name, of in held.items() if isinstance(of, Slice)}
    cut = {name: slices[name].sharded(slices[name].cut(v)) if name in slices else v for name, v in values.items()}
    module.load_state_dict(cut, strict=strict)


def collect(parameters: Sequence[nn.Parameter]) -> None:
    """Moves what a backward pass left in sharded parameters to their slices, where it adds up."""
    for held in parameters:
        if isinstance(held, Slice) and held.of.grad is not None:
            gradient: Any = held.of.grad
            found = gradient.to_local()
            held.grad = found if held.grad is None else held.grad.add_(found)
            held.of.grad = None


def gradient_norm(parameters: Sequence[nn.Parameter]) -> Tensor:
    """The Euclidean norm of all gradients together, those on other processes too."""
    slices = [p for p in parameters if isinstance(p, Slice)]
    found = [p.grad for p in parameters if p.grad is not None and not isinstance(p, Slice)]
    if not slices:
        return get_total_norm(found)
    mesh, own = slices[0].of.device_mesh, [p.grad for p in slices if p.grad is not None]
    squares = get_total_norm(own).square() if own else torch.zeros((), device=slices[0].device)
    dist.all_reduce(squares, group=mesh.get_group(mesh.ndim - 1))
    return (squares + get_total_norm(found).square() if found else squares).sqrt()


@contextmanager
def brought_together(net: nn.Module) -> Iterator[None]:
    """Within, a sharded network is whole on every process, and one of them may call it alone, without gradients."""
    parts = [module for module in net.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


def around(net: nn.Module, layer: str) -> list[FSDPModule]:
    """The sharded modules that a layer lies in, itself too, the outermost first."""
    ways = ["", *(layer[:end] for end in range(len(layer) + 1) if end == len(layer) or layer[end] == ".")]
    modules = [net.get_submodule(way) for way in dict.fromkeys(ways)]
    return [module for module in modules if isinstance(module, FSDPModule)]


def kept_for_backward(output: Any, parts: Sequence[FSDPModule]) -> Any:
    """What a layer returned, whose gradient may come back without one of the modules around it having returned."""
    for part in parts:
        output = part._get_fsdp_state()._register_pre_backward_hook(output)
    return output


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The members of a network's outermost lists of modules, after those within each that is large."""
    found: list[str] = []
    for name, module in net.named_modules():
        if isinstance(module, nn.ModuleList) and not any(name.startswith(f"{other}.") for other in found):
            found.append(name)
            for member in module:
                if sum(p.numel() for p in member.parameters()) > BLOCK:
                    yield from _blocks(member)
                if next(member.parameters(), None) is not None:
                    yield member
