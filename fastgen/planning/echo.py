"""Blocks that are alike are measured once: their further calls on tensors without values are echoed, not run.

A network of seventy blocks of two widths is counted in the time of two. An echo allocates what the block would keep for
its backward pass, so that a meter sees the same memory live and die, gradient checkpointing included.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten

from .card import NOWHERE, OnCard
from .meter import Measured, Meter

_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Block:
    """What one call of a block costs.

    Args:
        forward, backward: its work and peak in either pass.
        kept: bytes that it makes and keeps for its backward pass.
        held: which of its inputs it keeps for it.
        outputs: its outputs flattened: shape, dtype and whether they have a gradient, or what is no tensor itself.
        form: structure of the outputs.
        reached: which of its inputs and parameters get a gradient.
    """

    forward: Measured
    backward: Measured
    kept: int
    held: tuple[bool, ...]
    outputs: tuple[Any, ...]
    form: Any
    reached: tuple[bool, ...] = ()


@dataclass(frozen=True)
class _Shaped:
    """An output that is a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    gradient: bool

    def made(self) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=NOWHERE)


@dataclass(frozen=True)
class Echoes:
    """The blocks that were measured.

    Args:
        meter: meter that measures, and that echoes are counted by.
        mode: card that they run on.
    """

    meter: Meter
    mode: OnCard
    known: dict[Any, Block] = field(default_factory=dict)
    _forms: dict[int, tuple[nn.Module, Any]] = field(default_factory=dict)

    @contextmanager
    def within(self, networks: Sequence[nn.Module]) -> Iterator[None]:
        """Within, the blocks of these networks are echoed: members of lists of modules that have parts themselves."""
        lists = [part for net in networks for part in net.modules() if isinstance(part, nn.ModuleList)]
        blocks = {id(block): block for part in lists for block in part if block is not None and any(block.children())}
        for block in blocks.values():
            vars(block)["forward"] = self._echoing(block)
        try:
            yield
        finally:
            for block in blocks.values():
                del vars(block)["forward"]

    def _echoing(self, block: nn.Module) -> Any:
        forward = block.forward

        def echo(*args: Any, **kwargs: Any) -> Any:
            hooked = any(part._forward_hooks or part._forward_pre_hooks for part in block.modules())
            if hooked or peek_interpreter_stack() is not None:  # echoed blocks have no forward-mode derivative
                return forward(*args, **kwargs)
            leaves, form = tree_flatten((args, kwargs))
            tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
            trained = [p for p in block.parameters() if p.requires_grad]
            graph = torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *trained))
            key = self._key(block, leaves, form, graph=graph)
            if key not in self.known:
                self.known[key] = self._measured(forward, leaves, form, trained, graph=graph)
            return self._answer(self.known[key], tensors, trained, graph=graph)

        return echo

    def _answer(self, block: Block, tensors: Sequence[Tensor], trained: Sequence[Tensor], *, graph: bool) -> Any:
        if graph:
            made = list(_Echo.apply(block, self.meter, len(tensors), *tensors, *trained))
        else:
            made = [output.made() for output in block.outputs if isinstance(output, _Shaped)]
            self.meter.add(block.forward.work)
            self.meter.spike(block.forward.peak - block.forward.left)
        leaves = [made.pop(0) if isinstance(output, _Shaped) else output for output in block.outputs]
        return tree_unflatten(leaves, block.form)

    def _key(self, block: nn.Module, leaves: Sequence[Any], form: Any, *, graph: bool) -> Any:
        told = tuple(_signature(leaf) for leaf in leaves)
        weights = tuple((name, p.shape, p.dtype, p.requires_grad) for name, p in block.named_parameters())
        return self._form(block), weights, told, str(form), graph, self.mode.autocast

    def _form(self, block: nn.Module) -> Any:
        """What modules that compute the same have in common: classes and settings of all their parts."""
        if id(block) not in self._forms:
            parts = ((name, type(part), _settings(part)) for name, part in block.named_modules())
            self._forms[id(block)] = block, tuple(parts)
        return self._forms[id(block)][1]

    def _measured(
        self, forward: Any, leaves: Sequence[Any], form: Any, trained: Sequence[Tensor], *, graph: bool
    ) -> Block:
        meter, own = self.meter, [_apart(leaf) for leaf in leaves]
        work, peak = meter.work, meter.peak
        args, kwargs = tree_unflatten(own, form)
        saved: set[int] = set()
        with meter.counting(again=False), saved_tensors_hooks(_noting(saved), lambda x: x):
            with meter.measured() as ahead:
                outputs = forward(*args, **kwargs)
            flat, shape = tree_flatten(outputs)
            ends = [x for x in flat if isinstance(x, Tensor) and x.requires_grad]
            starts = [*(x for x in own if isinstance(x, Tensor)), *trained]
            with meter.measured() as back:
                reached = _reached(ends, starts) if graph else ()
        given = [x for x in own if isinstance(x, Tensor)]
        kept = ahead.left - _bytes([x for x in flat if isinstance(x, Tensor)], given)
        meter.work, meter.peak = work, peak
        told = tuple(_Shaped(x.shape, x.dtype, x.requires_grad) if isinstance(x, Tensor) else x for x in flat)
        held = tuple(x.untyped_storage()._cdata in saved for x in given)
        return Block(ahead, back, max(0, kept), held, told, shape, reached)


class _Echo(torch.autograd.Function):
    """A block's call that allocates what the block would and computes nothing."""

    @staticmethod
    def forward(ctx: Any, block: Block, meter: Meter, told: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        kept = torch.empty(block.kept, dtype=torch.uint8, device=NOWHERE)
        ctx.save_for_backward(kept, *(x for x, held in zip(tensors[:told], block.held, strict=True) if held))
        ctx.block, ctx.meter, ctx.starts = block, meter, [(x.shape, x.dtype) for x in tensors]
        ctx.set_materialize_grads(False)
        meter.add(block.forward.work)
        meter.spike(block.forward.peak - block.kept)
        shaped = [output for output in block.outputs if isinstance(output, _Shaped)]
        made = tuple(output.made() for output in shaped)
        ctx.mark_non_differentiable(*(x for x, output in zip(made, shaped, strict=True) if not output.gradient))
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        kept = ctx.saved_tensors  # made again here by a checkpoint
        ctx.meter.add(ctx.block.backward.work)
        ctx.meter.spike(ctx.block.backward.peak)
        del kept
        wanted = zip(ctx.starts, ctx.block.reached, ctx.needs_input_grad[3:], strict=True)
        gradients = (
            torch.empty(shape, dtype=dtype, device=NOWHERE) if reached and asked else None
            for (shape, dtype), reached, asked in wanted
        )
        return None, None, None, *gradients


def _noting(saved: set[int]) -> Callable[[Tensor], Tensor]:
    """Notes whose memory is kept for a backward pass."""

    def note(tensor: Tensor) -> Tensor:
        saved.add(tensor.untyped_storage()._cdata)
        return tensor

    return note


def _reached(ends: Sequence[Tensor], starts: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which tensors get a gradient; computed, so that a meter sees it."""
    asked = [x for x in starts if x.requires_grad]
    found = torch.autograd.grad(ends, asked, [torch.empty_like(x) for x in ends], allow_unused=True)
    has = {id(x): gradient is not None for x, gradient in zip(asked, found, strict=True)}
    return tuple(has.get(id(x), False) for x in starts)


def _apart(leaf: Any) -> Any:
    """A tensor with its values, in no graph; anything else as it is."""
    return leaf.detach().requires_grad_(leaf.requires_grad) if isinstance(leaf, Tensor) else leaf


def _bytes(tensors: Sequence[Tensor], known: Sequence[Tensor]) -> int:
    before = {x.untyped_storage()._cdata for x in known}
    sizes = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    return sum(size for key, size in sizes.items() if key not in before)


def _signature(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.requires_grad, leaf.is_contiguous()
    return leaf if isinstance(leaf, _PLAIN) else type(leaf)


def _settings(part: nn.Module) -> tuple[Any, ...]:
    return tuple(sorted((name, str(value)) for name, value in vars(part).items() if isinstance(value, _PLAIN)))
