# ruff: noqa: ANN001, ANN202
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""AdamW with moments in eight bits as one kernel a tensor, where an update in PyTorch is some thirty passes over it.

It does what `rules.AdamW` does with `eight_bits` and `models.masters`, to rounding; what is rounded by chance is drawn
within. Functions that Triton compiles bear no annotations but its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..models.casting import HALF
from ..models.masters import is_halved, low_of
from .eight_bits import BLOCK, CODES, SCALES

ROWS = 8
"""Blocks of 256 values that one program steps."""


@dataclass(frozen=True)
class Pass:
    """One update of some tensors.

    Args:
        moments: names of those that are kept, `("exp_avg", "exp_avg_sq")` or the second alone.
        settings: lr, betas, eps, weight_decay.
        seeds: of each tensor, for what is rounded by chance.
        factor: what gradients in half precision are multiplied by, on the device; None for 1.
        blocked: on the device; where it is 1, nothing changes. None for 0.
    """

    moments: tuple[str, ...]
    settings: Mapping[str, Any]
    seeds: Sequence[int]
    factor: Tensor | None = None
    blocked: Tensor | None = None


def step(weights: Sequence[Tensor], states: Sequence[dict[str, Tensor]], update: Pass) -> None:
    """Steps weights with their gradients, in place.

    Args:
        weights: on a GPU, contiguous; in float32, split or in bf16.
        states: of each: "step", and codes and scales of its moments.
    """
    for weight, state, seed in zip(weights, states, update.seeds, strict=True):
        _step(weight, state, update, seed)
    steps = [state["step"] for state in states]
    if update.blocked is None:
        torch._foreach_add_(steps, 1.0)
    else:
        torch._foreach_add_(steps, [1 - update.blocked] * len(steps))  # a single tensor would be read by the host


def _step(weight: Tensor, state: dict[str, Tensor], update: Pass, seed: int) -> None:
    assert weight.grad is not None, "only tensors with a gradient are stepped"
    low = low_of(weight)
    *first, second = ((state[name + CODES], state[name + SCALES]) for name in update.moments)
    beta1, beta2 = update.settings["betas"]
    _adamw[(triton.cdiv(weight.numel(), ROWS * BLOCK),)](
        weight.detach(),
        low,
        weight.grad.contiguous(),
        *(first[0] if first else (None, None)),
        *second,
        state["step"],
        update.factor if weight.grad.dtype in HALF else None,
        update.blocked,
        seed,
        weight.numel(),
        update.settings["lr"],
        update.settings["weight_decay"],
        update.settings["eps"],
        1 - beta1,
        1 - beta2,
        math.log2(beta1) if beta1 else -math.inf,
        math.log2(beta2),
        split=low is not None,
        by_chance=low is None and is_halved(weight),
        rows=ROWS,
        block=BLOCK,
        enable_fp_fusion=False,  # weights in two halves are rounded as whole ones are
    )


@triton.jit(do_not_specialize=["seed", "count"])
def _adamw(
    weights,
    lows,
    gradients,
    firsts,
    first_scales,
    seconds,
    second_scales,
    steps,
    factor,
    blocked,
    seed,
    count,
    lr,
    decay,
    eps,
    new1,
    new2,
    log_beta1,
    log_beta2,
    split: tl.constexpr,
    by_chance: tl.constexpr,
    rows: tl.constexpr,
    block: tl.constexpr,
):
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    at = row[:, None] * block + tl.arange(0, block)[None, :]
    if blocked is not None:
        count *= (tl.load(blocked) == 0).to(tl.int32)
    inside, known = at < count, row * block < count
    random, others, _, _ = tl.randint4x(seed, at, 7)  # rounds

    weight = tl.load(weights + at, mask=inside, other=0.0)
    if split:
        high = weight.to(tl.int16, bitcast=True).to(tl.int32) << 16
        low = tl.load(lows + at, mask=inside, other=0).to(tl.int32)
        weight = (high + low).to(tl.float32, bitcast=True)
    weight = weight.to(tl.float32)
    gradient = tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32)
    if factor is not None:
        gradient *= tl.load(factor)

    step = (tl.load(steps) + 1).to(tl.float64)
    bias = (1 - tl.exp2(step * log_beta2)).to(tl.float32)
    second = _moment(seconds, second_scales, at, row, inside, known, False)
    second += new2 * (gradient * gradient - second)
    size, first = lr, gradient
    if firsts is not None:
        first = _moment(firsts, first_scales, at, row, inside, known, True)
        first += new1 * (gradient - first)
        size = lr / (1 - tl.exp2(step * log_beta1)).to(tl.float32)
        _keep(firsts, first_scales, first, others & 0xFFFF, at, row, inside, known, True)
    weight -= lr * decay * weight
    weight -= size * first / (tl.sqrt(second) / tl.sqrt(bias) + eps)
    _keep(seconds, second_scales, second, others >> 16, at, row, inside, known, False)

    if split or by_chance:
        bits = weight.to(tl.int32, bitcast=True)
        high = (bits + (0x8000 if split else (random & 0xFFFF).to(tl.int32))) >> 16
        tl.store(weights + at, high.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=inside)
        if split:
            tl.store(lows + at, (bits - (high << 16)).to(tl.int16), mask=inside)
    else:
        tl.store(weights + at, weight, mask=inside)


@triton.jit
def _moment(codes, scales, at, row, inside, known, signed: tl.constexpr):
    """A moment in float32."""
    level = _level(tl.load(codes + at, mask=inside, other=0).to(tl.int32), signed)
    return tl.where(inside, level * tl.load(scales + row, mask=known, other=0.0)[:, None], 0.0)


@triton.jit
def _keep(codes, scales, value, random, at, row, inside, known, signed: tl.constexpr):
    """Writes a moment as the level below or above, the nearer the likelier; `random` is sixteen bits of it."""
    scale = tl.max(tl.abs(tl.where(inside, value, 0.0)), axis=1)
    share = value / tl.maximum(scale, 1.17549435e-38)[:, None]
    below = _below(share, signed)
    low, high = _level(below, signed), _level(below + 1, signed)
    up = (random.to(tl.float32) + 0.5) / 65536 < (share - low) / (high - low)
    tl.store(codes + at, (below + up.to(tl.int32)).to(tl.uint8), mask=inside)
    tl.store(scales + row, scale, mask=known)


@triton.jit
def _level(code, signed: tl.constexpr):
    """What a code stands for, see `eight_bits.LEVELS`, computed: from memory it would take longer."""
    if signed:
        height = tl.where(code > 127, code - 128, 127 - code)
        size = tl.exp2(16 * (height.to(tl.float32) / 127 - 1))
        level = tl.where(code == 127, 0.0, tl.where(code > 127, size, -size))
    else:
        level = tl.exp2(24 * (code.to(tl.float32) / 255 - 1))
    return level


@triton.jit
def _below(share, signed: tl.constexpr):
    """The last level that is not above a share, but for the last of all; or its neighbour where both are as near."""
    octaves = tl.log2(tl.maximum(tl.abs(share), 1e-30))
    if signed:
        height = tl.floor((octaves / 16 + 1) * 127).to(tl.int32)
        code = tl.where(share > 0, 128 + tl.maximum(height, -1), 126 - tl.maximum(height, 0))
        code = tl.where(share == 0, 127, code)
    else:
        code = tl.floor((octaves / 24 + 1) * 255).to(tl.int32)
    return tl.minimum(tl.maximum(code, 0), 254)
