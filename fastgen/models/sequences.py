"""The border of a network whose tokens lie apart on several processes.

The processes of a group are told the same, each computes with its part of the tokens, and each gets the whole output.
So what a backward pass leaves on one of them is the share of its tokens: their sum is the gradient of one process. At
the border that is made a mean, which all else of training takes over processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class Parts(ABC):
    """The parts of a network's tokens.

    Args:
        group: the processes that have them.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def entering(self, x: Tensor) -> Tensor:
        """What the network is told; its gradient is the mean of what the processes find for their tokens."""
        entered: Tensor = _Entering.apply(x, self._group)
        return entered

    def leaving(self, output: Tensor) -> Tensor:
        """What it returned; its gradient counts once for each process, so that a mean over them is their sum."""
        left: Tensor = _Leaving.apply(output, dist.get_world_size(self._group))
        return left

    @contextmanager
    def together(self) -> Iterator[None]:
        """Within, the network has all tokens, and one process may call it alone, without gradients."""
        self.join()
        try:
            yield
        finally:
            self.part()

    @abstractmethod
    def part(self) -> None:
        """Lets the network compute with this process's tokens from here on."""

    @abstractmethod
    def join(self) -> None:
        """Lets it compute with all of them."""


def with_all_tokens(parts: Parts | None) -> AbstractContextManager[None]:
    """See `Parts.together`; of a network whose tokens are together anyway, nothing."""
    return nullcontext() if parts is None else parts.together()


class _Entering(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=ctx.group)
        return total / dist.get_world_size(ctx.group), None


class _Leaving(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, size: int) -> Tensor:
        ctx.size = size
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return gradient * ctx.size, None
