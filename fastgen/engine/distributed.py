"""Data parallelism without wrappers: after its backward passes, a turn's gradients are averaged, small ones as one.

One backward pass can cross several roles and call a network several times, which DDP's hooks are not made for; an
all-reduce of exactly the acting roles' gradients is right for every objective.

What is averaged lies on the device of training and travels by its backend, NCCL on GPUs, which gives up on a process
that is ten minutes late. Objects, and processes that wait for one that works alone, take a gloo group beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import UserError

PATIENCE = timedelta(days=30)  # for one process that encodes, exports or measures; a dead one is noticed at once

ALONE = 2**20  # values of a gradient from which on it is averaged where it lies

Value = TypeVar("Value")


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Averages `.grad` over all processes in place; a missing gradient counts as zero, unless no process has it."""
    if not _parallel() or not parameters:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(present)
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for p, somewhere in zip(parameters, present.tolist(), strict=True):
        if somewhere:
            groups.setdefault(p.dtype, []).append(p)
    for members in groups.values():
        for large in [p for p in members if p.numel() >= ALONE]:
            large.grad = average(_gradient(large).contiguous())
        small = [p for p in members if p.numel() < ALONE]
        if small:
            flat = average(torch.cat([_gradient(p).flatten() for p in small]))
            for p, piece in zip(small, torch.split(flat, [p.numel() for p in small]), strict=True):
                p.grad = piece.view_as(p).clone()


def average(values: Tensor) -> Tensor:
    """The mean over all processes of a tensor on the device of training."""
    if _parallel():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def average_of(value: float, device: torch.device) -> float:
    """The mean over all processes of a number; one process alone need not ask its device."""
    return average(torch.tensor(value, device=device)).item() if _parallel() else value


def meet() -> None:
    """Waits for every process, however long one of them works alone."""
    if _parallel():
        dist.barrier(group=_beside(dist.group.WORLD))


def shared(value: Value) -> Value:
    """The first process's value, on every process; what the others give is dropped."""
    if not _parallel():
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0, group=_beside(dist.group.WORLD))
    return told[0]


def alone(work: Callable[[], Value]) -> Value | None:
    """What `work` returns on the first process, which does it while the others wait; None on the others.

    Raises:
        UserError: it failed; the first process raises its own error, the others one that names it.
    """
    if not _parallel():
        return work()
    first, done, failure = dist.get_rank() == 0, None, None
    try:
        done = work() if first else None
    except Exception as error:
        failure = error
    reason = shared(None if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if reason is not None:
        raise UserError(f"the first process stopped: {reason}")
    return done


def spread(read: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that the first process reads from its disk, in the main memory of every process.

    Raises:
        UserError: they could not be read, as in `alone`.
    """
    held = alone(read)
    if not _parallel():
        return dict(held or {})
    kinds = shared([(name, tensor.shape, tensor.dtype) for name, tensor in (held or {}).items()])
    told = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in kinds} if held is None else dict(held)
    for name, tensor in told.items():
        told[name] = tensor.contiguous()
        if tensor.numel():
            bits = told[name].reshape(-1).view(torch.uint8)  # gloo knows few dtypes
            dist.broadcast(bits, src=0, group=_beside(dist.group.WORLD))
    return told


def leave() -> None:
    """Waits for every process and ends their connection."""
    if dist.is_available() and dist.is_initialized():
        meet()
        dist.destroy_process_group()


@lru_cache(maxsize=1)
def _beside(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A gloo group of the same processes; every one of them asks for it at the same place."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup), "this process is one of them"
    return group


def _gradient(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
