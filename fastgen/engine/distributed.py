"""Data parallelism without wrappers: after its backward passes, a turn's gradients are averaged in flat buffers.

One backward pass can cross several roles and call a network several times, which DDP's hooks are not made for; an
all-reduce of exactly the acting roles' gradients is right for every objective.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


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
        flat = torch.cat([_gradient(p).flatten() for p in members])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, piece in zip(members, torch.split(flat, [p.numel() for p in members]), strict=True):
            p.grad = piece.view_as(p).clone()


def average(values: Tensor) -> Tensor:
    """The mean of a tensor over all processes."""
    if _parallel():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def _gradient(p: nn.Parameter) -> Tensor:
    return torch.zeros_like(p) if p.grad is None else p.grad


def _parallel() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
