"""Gradients averaged over processes, most of them while the backward pass that makes them is still under way.

One backward pass can cross several roles and call a network several times, which DDP's wrapper is not made for. So
nothing is wrapped: PyTorch says when the gradient of a parameter is whole, and buckets of them travel as they fill.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .distributed import broadcast, parallel

BUCKET = 2**23  # values that travel together; a parameter of as many travels where it lies


@dataclass
class Bucket:
    """Parameters whose gradients are of one dtype and travel as one tensor.

    Attributes:
        parameters: what it holds, in the order in which they are laid out.
        made: those whose gradients the backward pass has finished, by number.
        flat: their gradients while they travel, which their own give way to.
        travelling: what waits for it.
    """

    parameters: list[nn.Parameter] = field(default_factory=list)
    made: set[int] = field(default_factory=set)
    flat: Tensor | None = None
    travelling: Any = None

    @property
    def size(self) -> int:
        """The number of its values."""
        return sum(p.numel() for p in self.parameters)

    def send(self) -> None:
        """Begins to add up the gradients of all processes; a missing one is zero."""
        found = [torch.zeros_like(p, dtype=p.grad_dtype) if p.grad is None else p.grad for p in self.parameters]
        self.flat = found[0].contiguous() if len(found) == 1 else torch.cat([gradient.flatten() for gradient in found])
        for p in self.parameters:
            p.grad = None
        self.travelling = dist.all_reduce(self.flat, async_op=True)

    def arrive(self) -> None:
        """Gives every parameter its mean, as a part of what travelled."""
        assert self.flat is not None, "it was sent"
        self.travelling.wait()
        self.flat /= dist.get_world_size()
        pieces = self.flat.flatten().split([p.numel() for p in self.parameters])
        for p, piece in zip(self.parameters, pieces, strict=True):
            assert p.grad is None, "a gradient grew after it was sent"
            gradient = piece.view(p.shape)
            p.grad = gradient if p.is_contiguous() else torch.empty_like(p, dtype=p.grad_dtype).copy_(gradient)
        self.flat = self.travelling = None


class Averager:
    """The gradients of what a turn trains, averaged over all processes.

    The parameters fill buckets in the order in which the first backward pass of the first process made their
    gradients. Every process sends its buckets in that order, whatever its own passes do. What comes without a backward
    pass, such as the gradient of an adapter's masters, is sent when all is over.

    Args:
        parameters: parameters that optimizers step after the turn.
        early: send a gradient as soon as PyTorch reports that it is complete. Set this to false where CUDA graphs add
            to gradients, because PyTorch does not see that.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, early: bool = True) -> None:
        self._parameters = list(parameters) if parallel() else []
        self._made: list[int] = []
        self._buckets: list[Bucket] = []
        self._of: dict[int, Bucket] = {}
        self._sent = 0
        self._early, self._listening = early, False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A context for the turn's last backward pass, during which complete gradients may already be sent."""
        if not self._buckets:
            self._listen()
        self._listening = self._early
        try:
            yield
        finally:
            self._listening = False

    def heard(self, number: int) -> None:
        """A parameter's gradient is whole."""
        if not self._listening:
            return
        if not self._buckets:
            self._made.append(number)
            return
        self._of[number].made.add(number)
        for bucket in self._buckets[self._sent :]:
            if len(bucket.made) < len(bucket.parameters):
                return
            bucket.send()
            self._sent += 1

    def finish(self) -> None:
        """Puts the means in place; a missing gradient counts as zero, unless no process has it.

        Nothing waits for the device but a process that lacks a gradient, which has to learn whether others have it.
        """
        if not self._parameters:
            return
        if not self._buckets:
            self._fill(broadcast(self._made))
        unsent = self._buckets[self._sent :]
        lacking = [p for bucket in unsent for p in bucket.parameters if p.grad is None]
        for bucket in unsent:
            bucket.send()
        having = self._having(lacking)
        for bucket in self._buckets:
            bucket.arrive()
            bucket.made.clear()
        for p, count in zip(self._parameters, having.tolist() if lacking else (), strict=False):
            p.grad = p.grad if count else None
        self._sent = 0

    def _listen(self) -> None:
        for number, p in enumerate(self._parameters):
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(_heard_by(weakref.ref(self), number))

    def _having(self, lacking: Sequence[nn.Parameter]) -> Tensor:
        """Count for each parameter the processes that have a gradient; this process has all but the `lacking` ones."""
        here = torch.ones(len(self._parameters), device=self._parameters[0].device)
        absent = set(map(id, lacking))
        for number, p in enumerate(self._parameters):
            if id(p) in absent:
                here[number].zero_()
        dist.all_reduce(here)
        return here

    def _fill(self, order: Sequence[int]) -> None:
        """Lays the parameters out in this order, and then those that it does not name."""
        filling: dict[torch.dtype, Bucket] = {}
        for number in dict.fromkeys([*order, *range(len(self._parameters))]):
            p = self._parameters[number]
            dtype = p.grad_dtype or p.dtype
            bucket = filling.pop(dtype, Bucket())
            if bucket.parameters and bucket.size + p.numel() > BUCKET:
                self._buckets.append(bucket)
                bucket = Bucket()
            bucket.parameters.append(p)
            filling[dtype] = self._of[number] = bucket
        self._buckets += filling.values()


def _heard_by(averager: "weakref.ref[Averager]", number: int) -> Callable[[Tensor], None]:
    """Tells an averager of a parameter's gradient, as long as it exists."""

    def tell(_: Tensor) -> None:
        listener = averager()
        if listener is not None:
            listener.heard(number)

    return tell
