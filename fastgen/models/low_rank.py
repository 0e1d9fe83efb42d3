"""Layers that add a low-rank update to what a frozen layer computes (LoRA, Hu et al. 2021, arXiv:2106.09685).

    y = W x + b + B A x

A layer stays what it is, tensors and names included; it gets two slots for the factors of whoever acts, empty for the
layer itself. Only plain operations are used, so that forward-mode and second derivatives are PyTorch's own.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

DOWN, UP = "lora_A", "lora_B"
"""The slots of A [rank, in, ...] and of B [out, rank, ...], into which the scale of the update is multiplied."""
DOWN_KEY, UP_KEY = f".{DOWN}.weight", f".{UP}.weight"
"""What a layer's name is followed by in the names of its A and B, in state dicts and in files of peft's form."""


class LowRankLinear(nn.Linear):
    """A linear layer with an update; a quantised one computes its own part as it does without."""

    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None
    fresh = True
    """Whether the layer's own output is a tensor that nobody else has, so that the update is added in place."""

    def forward(self, x: Tensor) -> Tensor:
        if self.lora_A is None or self.lora_B is None:
            return super().forward(x)
        rows = x.flatten(0, -2).to(self.lora_A.dtype)
        if self.fresh and torch.compiler.is_compiling():
            y: Tensor = _Updated.apply(rows, self.weight, self.bias, self.lora_A, self.lora_B)
        else:
            y, low, up = super().forward(rows), rows @ self.lora_A.t(), self.lora_B.t()
            y = y.addmm_(low, up) if self.fresh else torch.addmm(y, low, up)
        return y.view(*x.shape[:-1], y.shape[-1])


class LowRankConv(nn.modules.conv._ConvNd):
    """A convolution with an update: A has its window, stride and padding, B is pointwise."""

    lora_A: nn.Parameter | None
    lora_B: nn.Parameter | None
    fresh = True

    def forward(self, x: Tensor) -> Tensor:
        own: Callable[[Tensor], Tensor] = super().forward
        if self.lora_A is None or self.lora_B is None:
            return own(x)
        x = x.to(self.lora_A.dtype)
        y, low = own(x), self._conv_forward(x, self.lora_A, None)
        pointwise = nn.functional.conv2d if low.ndim == 4 else nn.functional.conv3d
        return y.add_(pointwise(low, self.lora_B))


@torch.library.custom_op("fastgen::add_product", mutates_args=("y",))
def add_product(y: Tensor, a: Tensor, b: Tensor) -> None:
    """y + a b in the memory of y, also in compiled code, which would copy y for `addmm_`."""
    y.addmm_(a, b)


class _Updated(torch.autograd.Function):
    """A linear layer of frozen weights with its update, for compiled code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor) -> Tensor:
        y, low = nn.functional.linear(x, weight, bias), x @ down.t()
        add_product(y, low, up.t())
        ctx.save_for_backward(x, low, weight, down, up)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, low, weight, down, up = ctx.saved_tensors
        dx, dlow = dy @ weight, dy @ up
        add_product(dx, dlow, down)
        return dx, None, None, dlow.t() @ x, dy.t() @ low


def make_adaptable(layer: nn.Module) -> None:
    """Gives a layer the two slots, in place: its class becomes a subclass that adds the update."""
    if not isinstance(layer, LowRankLinear | LowRankConv):
        kind: Any = type(layer)
        layer.__class__ = _adaptable(kind)
    layer.register_parameter(DOWN, None)
    layer.register_parameter(UP, None)


def factor_shapes(layer: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of A and B of a linear layer or convolution."""
    if isinstance(layer, nn.Linear):  # a quantised weight has another shape
        return (rank, layer.in_features), (layer.out_features, rank)
    window = tuple(layer.kernel_size)
    return (rank, layer.in_channels, *window), (layer.out_channels, rank, *[1] * len(window))


def scale_of(rank: int, alpha: float | None) -> float:
    """What B A is multiplied by: alpha / rank, or 1 where alpha is not given."""
    return (alpha or rank) / rank


def draw(down: Tensor) -> Tensor:
    """Draws A in place, as PyTorch draws a linear layer's weight; B begins as zero, so that the update does."""
    return nn.init.kaiming_uniform_(down, a=math.sqrt(5))


@cache
def _adaptable(kind: Any) -> type[nn.Module]:
    form = LowRankLinear if issubclass(kind, nn.Linear) else LowRankConv
    fresh = form is LowRankConv or getattr(kind, "fresh", kind.forward is nn.Linear.forward)
    return type(f"LowRank{kind.__name__}", (form, kind), {"__module__": __name__, "fresh": fresh})
