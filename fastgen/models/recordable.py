"""Calls of networks as CUDA graphs may record them: who is called, and with what."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_KERNEL_BY_KERNEL = ContextVar("kernel by kernel", default=False)


@contextmanager
def kernel_by_kernel() -> Iterator[None]:
    """Within, no call is recorded or replayed, so that hooks of the layers run: a replay runs none."""
    before = _KERNEL_BY_KERNEL.set(True)
    try:
        yield
    finally:
        _KERNEL_BY_KERNEL.reset(before)


@dataclass(frozen=True)
class Actor:
    """A network's user whose calls are recorded: who calls it, and which parameters it may train.

    Args:
        name: tells it from all others; another role of a network, and another part of it, is another actor.
        net: the network, under the role that acts.
        parameters: what of it may be trained.
        weights: all that it reads besides.
        function: calls it; always the same for one name.
    """

    name: Hashable
    net: nn.Module
    parameters: Sequence[nn.Parameter]
    weights: Sequence[Tensor]
    function: Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Invocation:
    """A call.

    Args:
        actor: who is called.
        leaves, form: what it is told.
        trained: the weights that a graph is kept to.
    """

    actor: Actor
    leaves: list[Any]
    form: TreeSpec
    trained: list[nn.Parameter]

    @classmethod
    def of(cls, actor: Actor, told: Mapping[str, Any]) -> "Invocation":
        trained = [p for p in actor.parameters if p.requires_grad] if torch.is_grad_enabled() else []
        return cls(actor, *tree_flatten(dict(told)), trained)

    @cached_property
    def tensors(self) -> list[Tensor]:
        """What may have other values at another call of this kind."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def recordable(self) -> bool:
        """Whether the device has graphs, and the call is `plain`."""
        return bool(self.tensors) and all(x.is_cuda for x in self.tensors) and self.plain

    @property
    def plain(self) -> bool:
        """Whether no derivative is pushed forward, and nobody asks what is kept for backward or for single kernels."""
        pushed = torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
        return (
            not (pushed or _KERNEL_BY_KERNEL.get())
            and torch._C._autograd._top_saved_tensors_default_hooks(False) is None
        )

    @property
    def differentiated(self) -> bool:
        """Whether a backward pass may follow."""
        return torch.is_grad_enabled() and (bool(self.trained) or any(x.requires_grad for x in self.tensors))

    @property
    def kind(self) -> Hashable:
        """What calls of the same graph have in common."""
        seen = [_kind(leaf) for leaf in self.leaves]
        return self.actor.name, self.form, *seen, tuple(map(id, self.trained)), self.differentiated

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The addresses of all that the actor reads."""
        return tuple(weight.data_ptr() for weight in (*self.actor.parameters, *self.actor.weights))

    def again(self, tensors: Sequence[Tensor]) -> Any:
        """Make the same call with these tensors as its arguments."""
        values = iter(tensors)
        leaves = [next(values) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return self.actor.function(tree_unflatten(leaves, self.form))


def _kind(leaf: Any) -> Hashable:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.requires_grad
    return leaf if isinstance(leaf, Hashable) else repr(leaf)
