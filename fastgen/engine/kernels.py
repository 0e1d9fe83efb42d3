# ruff: noqa: ANN001, ANN202
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
"""AdamW as one kernel for many tensors, in about the time that it reads and writes.

It does what `rules.AdamW` does, with moments in float32 or in eight bits and with `models.masters`, to rounding; what
is rounded by chance is drawn within. Functions that Triton compiles bear no annotations but its own. A written number
that is no normal float32 is a float64 to Triton, and so is all that it meets, which takes ten times as long.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..models.casting import HALF
from ..models.masters import low_of
from .eight_bits import BLOCK, CODES, SCALES, blocks_of
from .rounding import chance, keep, keep_weight, moment_of, ratio, weight_of
from .rules import Pass

ROWS = 1
"""Blocks of 256 values that a program steps at once, which is one warp: each thread has eight neighbours of a block."""
RUN = 32
"""Blocks that it steps in all."""
TOGETHER = 16
"""Bytes that a thread reads at once, where a tensor begins at a multiple of them, and has a multiple in values."""
KINDS = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.uint8: tl.uint8}


class Line(NamedTuple):
    """What the kernel is told of a tensor: how many values it has, its number, and addresses; 0 of what it has not.

    A moment lies in two places, codes and their scales, or in one, its values.
    """

    values: int
    number: int
    weight: int
    low: int
    gradient: int
    step: int
    first: int
    first_scales: int
    second: int
    second_scales: int


VALUES, NUMBER, WEIGHT, LOW, GRADIENT, STEP, FIRST, FIRST_SCALES, SECOND, SECOND_SCALES = map(tl.constexpr, range(10))
"""Where the kernel finds them in a line."""
LINE = tl.constexpr(len(Line._fields))


@dataclass(frozen=True)
class Form:
    """What tensors that are stepped by one launch have in common.

    Args:
        weight, gradient, moment: their dtypes; that of codes is uint8.
        split: whether the weight has bits beside it.
        momentum: whether a first moment is kept; without one it is the gradient.
        together: whether neighbouring values can be read at once.
    """

    weight: torch.dtype
    gradient: torch.dtype
    moment: torch.dtype
    split: bool
    momentum: bool
    together: bool

    @classmethod
    def of(cls, weight: Tensor, gradient: Tensor, moment: Tensor, line: Line) -> "Form":
        together = not any(number % TOGETHER for number in (line.values, *line[WEIGHT.value :]))
        return cls(weight.dtype, gradient.dtype, moment.dtype, line.low != 0, line.first != 0, together)


def step(weights: Sequence[Tensor], states: Sequence[dict[str, Tensor]], update: Pass) -> None:
    """Steps weights with their gradients, in place.

    Args:
        weights: on a GPU, contiguous; in float32, split or in half precision.
        states: of each: "step", and moments, all of them in float32 or all of them codes and scales.
    """
    lines: defaultdict[Form, list[Line]] = defaultdict(list)
    gradients = []  # those that are copied live until the kernels are launched
    for weight, state, number in zip(weights, states, update.numbers, strict=True):
        assert weight.grad is not None, "only tensors with a gradient are stepped"
        gradient, (second, scales) = weight.grad.contiguous(), _kept(state, "exp_avg_sq")
        gradients.append(gradient)
        tensors = (weight, low_of(weight), gradient, state["step"], *_kept(state, "exp_avg"), second, scales)
        line = Line(weight.numel(), number, *(0 if tensor is None else tensor.data_ptr() for tensor in tensors))
        lines[Form.of(weight, gradient, second, line)].append(line)
    for form, table in lines.items():
        _launch(form, table, update, weights[0].device)
    steps = [state["step"] for state in states]
    if update.blocked is None:
        torch._foreach_add_(steps, 1.0)
    else:
        torch._foreach_add_(steps, [1 - update.blocked] * len(steps))  # a single tensor would be read by the host


def _kept(state: Mapping[str, Tensor], name: str) -> tuple[Any, Tensor | None]:
    """A moment's codes and scales, or its values alone; None where it is not kept."""
    return state.get(name + CODES, state.get(name)), state.get(name + SCALES)


def _launch(form: Form, lines: Sequence[Line], update: Pass, device: torch.device) -> None:
    """Steps tensors of one form."""
    runs = _runs(tuple(line.values for line in lines), device)
    beta1, beta2 = update.settings["betas"]
    _adamw[(len(runs),)](
        _sent(torch.tensor(lines), device),
        runs,
        update.factor if form.gradient in HALF else None,
        update.blocked,
        update.seed,
        update.settings["lr"],
        1 - update.settings["lr"] * update.settings["weight_decay"],
        update.settings["eps"],
        1 - beta1,
        1 - beta2,
        math.log2(beta1) if beta1 else -math.inf,
        math.log2(beta2),
        kind=KINDS[form.weight],
        gradient_kind=KINDS[form.gradient],
        moment_kind=KINDS[form.moment],
        split=form.split,
        momentum=form.momentum,
        together=TOGETHER if form.together else 1,
        rows=ROWS,
        run=RUN,
        block=BLOCK,
        num_warps=1,
    )


@lru_cache(maxsize=32)
def _runs(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """What each program steps: a tensor of these counts, and the first of its blocks there [programs, 2]."""
    programs = torch.tensor([-(-blocks_of(count) // RUN) for count in counts])
    owner = torch.arange(len(counts)).repeat_interleave(programs)
    first = torch.arange(len(owner)) - (programs.cumsum(0) - programs)[owner]
    return _sent(torch.stack([owner, RUN * first], dim=1).int(), device)


def _sent(table: Tensor, device: torch.device) -> Tensor:
    """The table on the device, by a copy that is not waited for."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


@triton.jit(do_not_specialize=["seed"])
def _adamw(
    table,
    runs,
    factor,
    blocked,
    seed,
    lr,
    shrink,
    eps,
    new1,
    new2,
    log_beta1,
    log_beta2,
    kind: tl.constexpr,
    gradient_kind: tl.constexpr,
    moment_kind: tl.constexpr,
    split: tl.constexpr,
    momentum: tl.constexpr,
    together: tl.constexpr,
    rows: tl.constexpr,
    run: tl.constexpr,
    block: tl.constexpr,
):
    """A program's part of the update: up to `run` blocks of one tensor, `rows` of them at once.

    The table has a `Line` for each tensor, `runs` for each program its line and its first block. new1 and new2 are
    1 - beta.
    """
    first = tl.load(runs + 2 * tl.program_id(0) + 1)
    line = table + LINE * tl.load(runs + 2 * tl.program_id(0))
    begin = first.to(tl.int64) * block
    count = tl.minimum(tl.load(line + VALUES) - begin, run * block).to(tl.int32)
    if blocked is not None:
        count *= (tl.load(blocked) == 0).to(tl.int32)
    count = tl.multiple_of(count, together)
    number = tl.load(line + NUMBER).to(tl.int32)
    weights = _place(line + WEIGHT, kind, begin, together)
    lows = _place(line + LOW, tl.int16, begin, together)
    gradients = _place(line + GRADIENT, gradient_kind, begin, together)
    firsts = _place(line + FIRST, moment_kind, begin, together)
    first_scales = _place(line + FIRST_SCALES, tl.float32, first, 1)
    seconds = _place(line + SECOND, moment_kind, begin, together)
    second_scales = _place(line + SECOND_SCALES, tl.float32, first, 1)

    step = (tl.load(_place(line + STEP, tl.float32, 0, 1)) + 1).to(tl.float64)
    unbiased = 1 / tl.sqrt(_gathered(step, log_beta2))
    size = lr / _gathered(step, log_beta1) if momentum else lr
    scaled = tl.load(factor) if factor is not None else 1.0

    for done in range(0, tl.cdiv(count, block), rows):
        row = done + tl.arange(0, rows)
        at = row[:, None] * block + tl.arange(0, block)[None, :]
        inside, known = at < count, row * block < count
        weight = weight_of(weights + at, lows + at, inside, split)
        gradient = tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32) * scaled

        moment = gradient
        if momentum:
            moment = moment_of(firsts + at, first_scales + row, inside, known, True)
            moment = tl.fma(gradient - moment, new1, moment)
            drawn = chance(seed, number, 2, first + row, block)
            keep(firsts + at, first_scales + row, moment, drawn, inside, known, True)
        second = moment_of(seconds + at, second_scales + row, inside, known, False)
        second = tl.fma(tl.fma(gradient, gradient, -second), new2, second)
        drawn = chance(seed, number, 1, first + row, block)
        keep(seconds + at, second_scales + row, second, drawn, inside, known, False)

        weight = tl.fma(weight, shrink, -ratio(size * moment, tl.fma(tl.sqrt(second), unbiased, eps)))
        half = 0x8000
        if kind == tl.bfloat16 and not split:
            half = chance(seed, number, 0, first + row, block)
        keep_weight(weights + at, lows + at, weight, half, inside, kind, split)


@triton.jit
def _gathered(step, log_beta):
    """1 - beta^step, the weight of all that a moment has seen."""
    return (1 - tl.exp2(step * log_beta)).to(tl.float32)


@triton.jit
def _place(entry, kind: tl.constexpr, begin, together: tl.constexpr):
    """A pointer to the beginning of a run, in the tensor whose address is in the table."""
    return tl.multiple_of(tl.load(entry).to(tl.pointer_type(kind)) + begin, together)
