"""Stops that half precision holds: what a network is told there is the same in bf16 as in float32.

Stops of a stock flow scheduler lie on Moebius curves, 1 - t_i = c i / (1 - r i) for i = 0 .. n - 1, of which a static
shift and an end choose c and r. So two stops are free and decide the others.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from ..models.pipelines.stock_pipeline import StockScheduler

REACH = 0.03
"""Largest distance of a stop from where it is wanted."""
ROUNDED = 1e-5
"""Of the largest time that a network is told: float32 loses less, half precision more or nothing."""
_EXACT = 1e-9
_STEEPEST = 0.99  # n r of a curve, which a static shift of 100 has


@dataclass(frozen=True)
class NetworkTimes:
    """What a pipeline tells its network of a flow's time.

    Args:
        slope, offset: the network is told slope t + offset at the process time t.
        at_stops: (scheduler, n) -> that at the stops of n steps, and what the pipeline in bf16 says there, [2, n].
    """

    slope: float
    offset: float
    at_stops: Callable[[StockScheduler, int], Tensor]

    def lost(self, scheduler: StockScheduler, n: int) -> float:
        """How far from the truth bf16 gets at the stops, over the largest value told; 0 where it holds them."""
        exact, halved = self.at_stops(scheduler, n)
        lost = float((exact - halved).abs().max() / exact.abs().max())
        return lost if lost > ROUNDED else 0.0


def held_times(wanted: tuple[float, ...], slope: float, offset: float) -> list[tuple[float, ...]]:
    """Stops [n] near the wanted ones, at which bf16 holds slope t + offset; the nearest first.

    Args:
        wanted: process times from 1 on, descending, on one curve.
        slope, offset: what the network is told is slope t + offset.
    """
    n = len(wanted)
    if n == 1:
        return []
    second, last = (_near(t, slope, offset) for t in (wanted[1], wanted[-1]))
    ends = ((t, t) for t in second) if n == 2 else product(second, last)
    curves = [_curve(n, *pair) for pair in ends]
    held = [curve for curve in curves if curve and all(_holds(slope * t + offset) for t in curve)]
    apart = {curve: max(abs(t - w) for t, w in zip(curve, wanted, strict=True)) for curve in held}
    return sorted((curve for curve in held if apart[curve] <= REACH), key=apart.__getitem__)


def bend_of(times: tuple[float, ...]) -> float:
    """r of the curve through n >= 2 stops; of two, that of shifted even times."""
    a, b = _line(len(times), times[1], times[-1])
    return -a / b


def _curve(n: int, second: float, last: float) -> tuple[float, ...] | None:
    """The n stops from 1 on with that second and last one, None where no scheduler has them."""
    if not 0 < last <= second < 1 or (n > 2 and last == second):
        return None
    a, b = _line(n, second, last)
    return (1.0, *(1 - 1 / (a + b / i) for i in range(1, n))) if -a / b <= _STEEPEST / n else None


def _line(n: int, second: float, last: float) -> tuple[float, float]:
    """a and b of 1 / (1 - t_i) = a + b / i, from the second and the last of n stops; shifted even times of two."""
    u, v = 1 - second, 1 - last
    b = 2 * second / u if n == 2 else (1 / u - 1 / v) * (n - 1) / (n - 2)
    return 1 / u - b, b


def _near(t: float, slope: float, offset: float) -> list[float]:
    """Times within reach at which bf16 holds what is told."""
    wanted, reach = slope * t + offset, abs(slope) * REACH
    step = 2.0 ** (math.frexp(abs(wanted) + reach)[1] - 9)  # half a step of bf16 at the largest value within reach
    values = {_rounded(wanted + i * step) for i in range(-int(reach / step), int(reach / step) + 1)}
    return [(value - offset) / slope for value in sorted(values)]


def _holds(value: float) -> bool:
    return abs(_rounded(value) - value) <= _EXACT * max(1.0, abs(value))


def _rounded(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(torch.bfloat16))
