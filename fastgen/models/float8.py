"""Frozen linear layers in float8: weights of one byte, products of float8 hardware, a gradient to the input.

    y_mn = s_m t_n sum_k x_mk w_nk + b_n        dx_mk = r_m sum_n g_mn w_nk

Weights and inputs are in e4m3 and what stands for gradients is in e5m2 (Micikevicius et al. 2022, arXiv:2209.05433),
each row with a scale of its own that takes its largest value to the largest of the format: t of a weight's, s of an
input's and r of a gradient's, into which t is multiplied before it is rounded. The backward pass turns the weights
anew at each call, so that they are held once.

All devices compute the same but for the order of sums; those without such products do it in bf16.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

WEIGHTS, INPUTS, GRADIENTS = torch.float8_e4m3fn, torch.float8_e4m3fn, torch.float8_e5m2
MULTIPLE = 16  # of both sides of a weight, as matrix units of float8 have it
COARSE = 0.04
"""Mean relative difference of a weight's entries that rounding may leave; of evenly spread entries it is 0.02."""
_TINY = 1e-30  # instead of the largest value of a row of zeros


class Float8Linear(nn.Linear):
    """A frozen linear layer in float8; it takes and gives bf16, and can be differentiated once.

    Args:
        weight: [out, in] in e4m3.
        scale: what each of its rows is to be multiplied by, [out, 1] in float32.
        bias: [out], or None.
    """

    scale: Tensor
    fresh = True

    def __init__(self, weight: Tensor, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.weight = nn.Parameter(weight.view(torch.uint8), requires_grad=False)  # casts leave integers as they are
        self.register_parameter("bias", bias)
        self.register_buffer("scale", scale, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).to(torch.bfloat16)
        y: Tensor = _Product.apply(rows, self.weight, self.scale)
        if self.bias is not None:
            y.add_(self.bias)
        return y.view(*x.shape[:-1], self.out_features)


@torch.no_grad()
def in_float8(layer: nn.Linear, device: torch.device) -> nn.Linear:
    """A linear layer in float8 on a device, with the same bias.

    It is the layer itself where its sides are not those of float8 products, or rounding would change its weights too
    much, as it does where those of a row lie further apart than the format reaches.
    """
    if layer.in_features % MULTIPLE or layer.out_features % MULTIPLE:
        return layer
    weight = layer.weight.detach().to(device, torch.float32)
    rounded, scale = rounded_rows(weight, WEIGHTS)
    changed = (rounded.float() * scale - weight).abs() / weight.abs().clamp(min=_TINY)
    return layer if changed.mean() > COARSE else Float8Linear(rounded, scale, layer.bias)


def rounded_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Rows [M, K] in a float8 dtype, and what each is to be multiplied by, [M, 1] in float32."""
    x = x.contiguous()
    largest = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True).clamp(min=_TINY)
    inverse = torch.finfo(dtype).max / largest
    return (x * inverse).to(dtype), inverse.float().reciprocal()


class _Product(torch.autograd.Function):
    """Rows [M, K] in bf16 times weights [N, K] in e4m3, seen as bytes, with their scales [N, 1]: [M, N] in bf16."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return _product(*rounded_rows(rows, INPUTS), weight.view(WEIGHTS), scale, fast=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        rounded = rounded_rows(gradient * scale.t().to(gradient.dtype), GRADIENTS)
        turned = weight.t().contiguous().view(WEIGHTS)
        return _product(*rounded, turned, torch.ones_like(turned[:, :1], dtype=torch.float32)), None, None


def _product(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, *, fast: bool = False) -> Tensor:
    """(a_scale a) (b_scale b)^T of [M, K] and [N, K] with scales [M, 1] and [N, 1]: [M, N] in bf16.

    Args:
        fast: sums may be kept in fewer bits than float32 has.
    """
    if has_products(a.device):
        return torch._scaled_mm(
            a, b.t(), scale_a=a_scale, scale_b=b_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=fast
        )
    sums = a.to(torch.bfloat16) @ b.to(torch.bfloat16).t()
    return (sums * a_scale * b_scale.t()).to(torch.bfloat16)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def has_products(device: torch.device) -> bool:
    """Whether a device multiplies float8 matrices of both formats by rows; it is tried once."""
    return _multiplies(device)


@cache
def _multiplies(device: torch.device) -> bool:
    one, ones = torch.ones((MULTIPLE, MULTIPLE), device=device), torch.ones((MULTIPLE, 1), device=device)
    try:
        for dtype in (INPUTS, GRADIENTS):
            b = one.to(WEIGHTS).t()
            torch._scaled_mm(one.to(dtype), b, scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError, ValueError):
        return False
    return True
