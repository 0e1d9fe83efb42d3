"""A call of a network that was recorded as a CUDA graph, with its backward pass."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .recordable import Invocation
from .sums import Arriving, Sums


class Waiting:
    """A call whose backward pass is still to come."""


@dataclass
class Slot:
    """Memory for one call that waits for its backward pass.

    Args:
        pool: of its graphs.
        waiting: who waits; a call that is forgotten without a backward pass waits no more.
    """

    pool: Any
    waiting: "ref[Waiting] | None" = None

    @property
    def free(self) -> bool:
        return self.waiting is None or self.waiting() is None


class Recorded:
    """A call without a backward pass."""

    def __init__(self, invocation: Invocation) -> None:
        self.places = invocation.places
        self.inputs = [x.detach().clone().requires_grad_(x.requires_grad) for x in invocation.tensors]
        self.graph = torch.cuda.CUDAGraph()
        self.outputs: list[Tensor] = []
        self.form: Any = None

    @classmethod
    def of(cls, invocation: Invocation, pool: Any) -> "Recorded":
        self = cls(invocation)
        with recording(self.graph, pool):  # in the grad mode of the call, which compiled blocks were compiled for
            self.outputs, self.form = _flat(invocation.again(self.inputs))
        return self

    def __call__(self, invocation: Invocation) -> Any:
        _fill(self.inputs, invocation.tensors)
        self.graph.replay()
        return tree_unflatten([output.clone() for output in self.outputs], self.form)


class Differentiated(Recorded):
    """A call with its backward pass, which adds to the gradients of the trained weights by itself."""

    def __init__(self, invocation: Invocation, slot: Slot, sums: Sums) -> None:
        super().__init__(invocation)
        self.slot, self.sums = slot, sums
        self.anchor = torch.zeros((), requires_grad=True) if invocation.trained else None
        self.backward = torch.cuda.CUDAGraph()
        self.upstream: list[Tensor] = []
        self.reached: list[int] = []
        """Which of the trained weights the results depend on."""

    @classmethod
    def of(cls, invocation: Invocation, slot: Slot, sums: Sums, pool: Any) -> "Differentiated":  # type: ignore[override]
        self = cls(invocation, slot, sums)
        with _leaves_anew(invocation.actor.net, invocation.trained) as trained:
            arriving = Arriving(trained, sums.places)
            with recording(self.graph, slot.pool):
                outputs, self.form = _flat(invocation.again(self.inputs))
            self.upstream = [torch.zeros_like(output) for output in outputs]
            roots = [y for y in outputs if y.requires_grad]
            upstream = [dy for y, dy in zip(outputs, self.upstream, strict=True) if y.requires_grad]
            leaves = [x for x in (*self.inputs, *trained) if x.requires_grad]
            for x in self.inputs:
                x.grad = torch.zeros_like(x) if x.requires_grad else None
            with recording(self.backward, pool):
                for x in self.inputs:
                    if x.grad is not None:
                        x.grad.zero_()
                torch.autograd.backward(roots, upstream, inputs=leaves)
                arriving.add()
            self.reached = arriving.reached
        self.outputs = [output.detach() for output in outputs]
        return self

    def __call__(self, invocation: Invocation) -> Any:
        outputs = _Replayed.apply(self, invocation.trained, self.anchor, *invocation.tensors)
        return tree_unflatten(list(outputs), self.form)


class _Replayed(torch.autograd.Function):
    """Replays a recorded call, and in `backward` its backward pass.

    The anchor stands for the weights: whether the engine would go on to it tells if their gradients are wanted.
    """

    @staticmethod
    def forward(
        ctx: Any, recorded: Differentiated, trained: list[nn.Parameter], anchor: Tensor | None, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        _fill(recorded.inputs, tensors)
        recorded.graph.replay()
        ctx.recorded, ctx.trained, ctx.waiting = recorded, trained, Waiting()
        recorded.slot.waiting = ref(ctx.waiting)
        return tuple(output.clone() for output in recorded.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
        recorded: Differentiated = ctx.recorded
        waiting = recorded.slot.waiting
        if waiting is None or waiting() is not ctx.waiting:
            raise RuntimeError("a recorded call is differentiated a second time, after other calls took its memory")
        _fill(recorded.upstream, upstream)
        if recorded.anchor is not None and torch._C._will_engine_execute_node(get_gradient_edge(recorded.anchor).node):
            recorded.sums.add(ctx.trained, recorded.reached, recorded.backward.replay)
        else:
            recorded.sums.spare(recorded.reached, recorded.backward.replay)
        recorded.slot.waiting = None
        return None, None, None, *(None if x.grad is None else x.grad.clone() for x in recorded.inputs)


class recording(torch.cuda.graph):
    """Records what is launched within; other threads may go on using the device.

    What is raised within says why a recording failed, not the error of ending it that follows.
    """

    def __init__(self, graph: Any, pool: Any) -> None:
        super().__init__(graph, pool=pool, capture_error_mode="thread_local")

    def __exit__(self, *raised: Any) -> None:
        try:
            super().__exit__(*raised)
        except RuntimeError:
            self.stream_ctx.__exit__(*raised)
            if raised[0] is None:
                raise


def _flat(output: Any) -> tuple[list[Tensor], TreeSpec]:
    """The tensors of what a call returned.

    Raises:
        RuntimeError: there is something else in it, which a replay would not make anew.
    """
    leaves, form = tree_flatten(output)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise RuntimeError("it returns more than tensors")
    return leaves, form


@contextmanager
def _leaves_anew(net: nn.Module, trained: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Within, the network has these weights as other leaves on the same memory.

    A leaf remembers the stream that it was first differentiated on, which may not be waited for while another one is
    recorded.
    """
    anew = {id(p): nn.Parameter(p.detach()) for p in trained}
    slots = [(m._parameters, name, p) for m in net.modules() for name, p in m._parameters.items() if id(p) in anew]
    try:
        for parameters, name, p in slots:
            parameters[name] = anew[id(p)]
        yield list(anew.values())
    finally:
        for parameters, name, p in slots:
            parameters[name] = p


@torch.no_grad()
def _fill(places: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for place, value in zip(places, values, strict=True):
        place.detach().copy_(value)
