"""Where the values of a plot lie, in the units of its picture."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

Direction = Literal["x", "y"]
At = tuple[float, float]
"""A position: right, down."""

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 466, 12, 292
_LARGEST, _SMALLEST = 1e300, 1e-300
"""What lies beyond is drawn here: sums and powers of such numbers are no numbers."""


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to positions in [start, end]."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], direction: Direction, *, log: bool, margin: float = 0.08) -> "Scale":
        """A scale with a margin, a share of it, around all values; a logarithmic one if `log` and all are positive."""
        ends = [max(-_LARGEST, min(_LARGEST, value)) for value in values]
        log = log and min(ends) > 0
        low, high = ((math.log10(max(_SMALLEST, end)) if log else end) for end in (min(ends), max(ends)))
        around = margin * (high - low) if high > low else (0.3 if log else 0.1 * abs(low) or 1.0)
        low, high = low - around, high + around
        if log:
            low, high = max(low, -307.0), min(high, 307.0)
        start, end = (_LEFT, _RIGHT) if direction == "x" else (_BOTTOM, _TOP)
        return cls(10**low if log else low, 10**high if log else high, log, start, end)

    def __call__(self, value: float) -> float:
        inside = max(self.low, min(self.high, value))
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, inside))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """Round values inside: 1, 2, 5 times powers of ten, at most about eight."""
        found = self._decades() if self.log else []
        return found if len(found) >= 2 else self._even()

    def _decades(self) -> list[float]:
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        factors, every = ((1, 2, 5), 1) if last - first <= 3 else ((1,), max(1, (last - first) // 6))
        values = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        return [value for value in values if self.low <= value <= self.high]

    def _even(self) -> list[float]:
        rough = (self.high - self.low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
        first = math.ceil(self.low / step)
        return [index * step for index in range(first, math.floor(self.high / step) + 1)]


@dataclass(frozen=True)
class Axes:
    """The frame of a plot: scales and labels of x and y, and the whole plot in words."""

    x: Scale
    y: Scale
    x_label: str
    y_label: str
    words: str

    width: ClassVar[int] = 480
    height: ClassVar[int] = 340
    left: ClassVar[int] = _LEFT
    right: ClassVar[int] = _RIGHT
    top: ClassVar[int] = _TOP
    bottom: ClassVar[int] = _BOTTOM

    def at(self, x: float, y: float) -> At:
        """The position of a value."""
        return self.x(x), self.y(y)


@dataclass(frozen=True)
class Line:
    """A line through positions; `kind` is its CSS class."""

    kind: str
    points: tuple[At, ...]
