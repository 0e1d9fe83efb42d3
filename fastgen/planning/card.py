"""Tensors without values, treated as on a CUDA card: its kernels, its autocast, its streams of numbers.

The card's host is taken to have Triton, which PyTorch for CUDA brings on Linux, and so the kernel of AdamW.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from ..engine import stepper
from ..engine.rules import Pass
from ..models import recompute
from ..models.casting import HALF
from .meter import Meter

NOWHERE = torch.device("meta")
WIDEST = 256  # largest width of a head for flash attention


class Numbers(torch.Generator):
    """A stream of numbers for tensors without values."""

    device = NOWHERE


class OnCard(TorchFunctionMode):
    """Within, attention is one kernel as on a card, and `autocast`, where it is set, does what CUDA's does."""

    autocast: torch.dtype | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        if self.autocast is not None and func in _ROUNDED:
            args, told = _cast((args, told), self.autocast)
        elif self.autocast is not None and func in _EXACT:
            args, told = _cast((args, told), torch.float32)
        if func is functional.scaled_dot_product_attention and torch.backends.cuda.flash_sdp_enabled():
            return _attention(*args, **told)
        if func in _SEEN_AS and args[0].is_meta:
            return _SEEN_AS[func]
        if func is torch.linalg.vector_norm and args[0].is_meta and len(args) == 2 and not told:
            return args[0].new_empty(())  # hundreds of gradient norms took a fifth of the time
        return func(*args, **told)


@contextmanager
def on_card(meter: Meter) -> Iterator[OnCard]:
    """Within, code for a CUDA card runs on the meta device as it would there, and is counted."""
    mode = OnCard()

    class Autocast(torch.autocast):
        """What PyTorch does not have for tensors without values."""

        def __init__(self, device_type: str, dtype: torch.dtype | None = None, enabled: bool = True, **_: Any) -> None:
            self._wanted = dtype if enabled else None

        def __enter__(self) -> None:
            self._outer, mode.autocast = mode.autocast, self._wanted

        def __exit__(self, *_: Any) -> None:
            mode.autocast = self._outer

    def checkpoint(block: Callable[..., Any], *args: Any, **settings: Any) -> Any:
        """PyTorch's own; the backward pass, where the block is computed again, knows nothing of the mode."""
        wanted, calls = mode.autocast, count()

        def on_the_card(*inputs: Any) -> Any:
            outer, mode.autocast = mode.autocast, wanted
            try:
                with mode, meter.counting(again=next(calls) > 0):
                    return block(*inputs)
            finally:
                mode.autocast = outer

        return stock_checkpoint(on_the_card, *args, **settings)

    stock_checkpoint: Callable[..., Any] = vars(recompute)["checkpoint"]
    with (
        _replaced(torch, "autocast", Autocast),
        _replaced(recompute, "checkpoint", checkpoint),
        _replaced(stepper, "kernel_on", lambda device: _stepped),
        meter,
        mode,
    ):
        yield mode


def _stepped(weights: Sequence[Tensor], states: Sequence[dict[str, Tensor]], update: Pass) -> None:
    """Allocates what the kernel of AdamW does: dense copies of gradients that are not dense, and nothing else."""
    _ = [weight.grad.contiguous() for weight in weights if weight.grad is not None]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    stock = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, stock)


def _cast(told: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in `dtype`; double precision stays."""

    def fit(x: Any) -> Any:
        floats = isinstance(x, Tensor) and x.is_meta and x.dtype in (*HALF, torch.float32)
        return x.to(dtype) if floats else x

    return tree_map(fit, told)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Flash attention where it serves, else the memory-efficient kernel: what PyTorch chooses on a card."""
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
    if attn_mask is None and query.dtype in HALF and query.shape[-1] <= WIDEST:
        output: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, scale=scale
        )[0]
        return output
    bias = None
    if attn_mask is not None:
        shape = (*query.shape[:-1], key.shape[-2])
        bias = attn_mask.to(query.dtype).expand(shape)
    masked: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, torch.is_grad_enabled(), dropout_p, is_causal, scale=scale
    )[0]
    return masked


_SEEN_AS: dict[Any, Any] = {torch.equal: False, Tensor.equal: False, Tensor.__bool__: False, Tensor.__float__: 0.0}
"""What is asked of tensors without values: two are never the same, a condition does not hold, a number is zero."""

_ROUNDED = {
    *(getattr(functional, name) for name in ("linear", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention")),
    *(getattr(functional, f"conv_transpose{axes}d") for axes in (1, 2, 3)),
    *(getattr(torch, name) for name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "conv2d", "conv3d")),
    *(Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.addmm, Tensor.baddbmm),
}
"""What CUDA's autocast computes in half precision (PyTorch's page on torch.amp)."""
_EXACT = {
    *(getattr(functional, name) for name in ("layer_norm", "group_norm", "softmax", "log_softmax", "softplus")),
    *(
        getattr(functional, name)
        for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "normalize", "cosine_similarity")
    ),
    *(getattr(torch, name) for name in ("exp", "log", "pow", "rsqrt", "reciprocal", "softmax", "sum", "prod", "norm")),
    *(Tensor.exp, Tensor.log, Tensor.pow, Tensor.__pow__, Tensor.rsqrt, Tensor.softmax, Tensor.sum, Tensor.prod),
    *(Tensor.norm, Tensor.reciprocal, Tensor.cumsum, torch.cumsum),
}
"""What it computes in fp32."""


def module_bytes(network: nn.Module) -> int:
    """Bytes of a module's parameters and buffers, those that share memory once."""
    return bytes_of([*network.parameters(), *network.buffers()])


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors, those that share memory once."""
    held = {x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in tensors}
    return sum(held.values())
