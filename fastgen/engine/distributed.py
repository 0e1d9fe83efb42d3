"""Processes that train together: means of what they have, and work that one of them does for all.

What is averaged lies on the device of training and travels by its backend, NCCL on GPUs, which gives up on a process
that is ten minutes late. Objects, and processes that wait for one that works alone, take a gloo group beside it.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..peers import Ending
from ..stopping import Stopped

PATIENCE = timedelta(days=30)  # for one process that encodes, exports or measures; a dead one is noticed at once

Value = TypeVar("Value")
Told = TypeVar("Told")


def parallel() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Whether this process is the one that works for all."""
    return not parallel() or dist.get_rank() == 0


def average(values: Tensor) -> Tensor:
    """The mean over all processes of a tensor on the device of training."""
    if parallel():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def agreed(seconds: float, wish: bool, device: torch.device) -> tuple[float, bool]:
    """The mean of `seconds` over all processes, and whether `wish` is true on any of them, in a single exchange.

    With one process, the values are returned as they are and the device is not used.
    """
    if not parallel():
        return seconds, wish
    mean, share = average(torch.tensor([seconds, float(wish)], device=device)).tolist()
    return mean, share > 0


def signal_of_any(number: int | None) -> int:
    """The same signal on every process, of those that some of them have heard."""
    heard = torch.tensor(number or 0)
    if parallel():
        dist.all_reduce(heard, dist.ReduceOp.MAX, group=_beside(dist.group.WORLD))
    return int(heard)


def barrier() -> None:
    """Waits for every process, however long one of them works alone."""
    if parallel():
        dist.barrier(group=_beside(dist.group.WORLD))


def broadcast(value: Value) -> Value:
    """The first process's value, on every process; what the others pass is dropped."""
    if not parallel():
        return value
    told = [value]
    dist.broadcast_object_list(told, src=0, group=_beside(dist.group.WORLD))
    return told[0]


def on_first(work: Callable[[], Value]) -> Value | None:
    """Does work on the first process while the others wait; returns what it gives there, None on the others.

    Raises:
        UserError: it failed; the first process raises its own error, the others one that names it.
        Stopped: a signal to the first process stopped the work, on every process.
    """
    if not parallel():
        return work()
    first, done, failure = dist.get_rank() == 0, None, None
    try:
        done = work() if first else None
    except (Exception, Stopped) as error:
        failure = error
    told = broadcast(None if failure is None else Ending.of(failure))
    if failure is not None:
        raise failure
    if told is not None:
        raise told.error("the first process")
    return done


def gathered(work: Callable[[], Value]) -> list[Value]:
    """Does work on every process; the first one gets what each returned, in their order, the others an empty list.

    Raises:
        UserError: it failed on one of them, which raises its own error, the others one that names it.
        Stopped: a signal to one of them stopped the work, on every process.
    """
    if not parallel():
        return [work()]
    done, failure = None, None
    try:
        done = work()
    except (Exception, Stopped) as error:
        failure = error
    group, count, rank = _beside(dist.group.WORLD), dist.get_world_size(), dist.get_rank()
    endings: list[Ending | None] = [None] * count
    dist.all_gather_object(endings, None if failure is None else Ending.of(failure), group=group)
    if failure is not None:
        raise failure
    for number, told in enumerate(endings):
        if told is not None:
            raise told.error(f"process {number}")
    parts: list[Any] | None = [None] * count if rank == 0 else None
    dist.gather_object(done, parts, dst=0, group=group)
    return parts or []


def share(count: int) -> range:
    """Which of so many things are this process's: one after the other, as evenly as can be."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if parallel() else (0, 1)
    return range(count * rank // processes, count * (rank + 1) // processes)


def helped(work: Callable[[Callable[[str], Told]], Value], bring: Callable[[str], Told]) -> Value | None:
    """Does work on the first process, which may ask by name for what all processes bring together; see `on_first`.

    Args:
        work: given what it asks with.
        bring: called with the same names in the same order on every process.

    Raises:
        UserError: as in `on_first`.
    """
    if not parallel():
        return work(bring)

    def ask(name: str) -> Told:
        broadcast(name)
        return bring(name)

    def ended() -> Value:
        try:
            return work(ask)
        finally:
            broadcast(None)

    if dist.get_rank() > 0:
        while (name := broadcast("")) is not None:
            bring(name)
    return on_first(ended)


def broadcast_tensors(read: Callable[[], Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors that the first process reads from its disk, in the main memory of every process.

    Raises:
        UserError: they could not be read, as in `on_first`.
    """
    held = on_first(read)
    if not parallel():
        return dict(held or {})
    kinds = broadcast([(name, tensor.shape, tensor.dtype) for name, tensor in (held or {}).items()])
    told = {name: torch.empty(shape, dtype=dtype) for name, shape, dtype in kinds} if held is None else dict(held)
    for name, tensor in told.items():
        told[name] = tensor.contiguous()
        if tensor.numel():
            bits = told[name].reshape(-1).view(torch.uint8)  # gloo knows few dtypes
            dist.broadcast(bits, src=0, group=_beside(dist.group.WORLD))
    return told


def disconnect() -> None:
    """Waits for every process and ends their connection."""
    if dist.is_available() and dist.is_initialized():
        barrier()
        dist.destroy_process_group()


@lru_cache(maxsize=1)
def _beside(world: dist.ProcessGroup) -> dist.ProcessGroup:
    """A gloo group of the same processes; every one of them asks for it at the same place."""
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    assert isinstance(group, dist.ProcessGroup), "this process is one of them"
    return group
