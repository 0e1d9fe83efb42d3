"""Axes of a plot as inline SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .markup import Markup, join, number, tag

WIDTH, HEIGHT = 480, 340
LEFT, RIGHT, TOP, BOTTOM = 58, 466, 12, 292

Direction = Literal["x", "y"]


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to positions in [start, end]."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    @classmethod
    def over(cls, values: Iterable[float], direction: Direction, *, log: bool) -> "Scale":
        """A scale with a margin around all values; a logarithmic one if `log` and all are positive."""
        values = list(values)
        log = log and min(values) > 0
        low, high = ((math.log10(end) if log else end) for end in (min(values), max(values)))
        margin = 0.08 * (high - low) or (0.3 if log else 0.1 * abs(low) or 1.0)
        low, high = low - margin, high + margin
        start, end = (LEFT, RIGHT) if direction == "x" else (BOTTOM, TOP)
        return cls(10**low if log else low, 10**high if log else high, log, start, end)

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
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


def plot(x: Scale, y: Scale, labels: tuple[str, str], marks: Iterable[str], alt: str) -> Markup:
    """A picture of `marks` between axes with grid lines; `labels` of x and y."""
    return tag(
        "svg",
        tag("title", alt),
        *(_tick_x(x, value) for value in x.ticks()),
        *(_tick_y(y, value) for value in y.ticks()),
        tag("path", d=f"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}", class_="axis"),
        text((LEFT + RIGHT) / 2, HEIGHT - 8, labels[0], "label"),
        tag("text", labels[1], class_="label", transform=f"translate(14 {(TOP + BOTTOM) / 2:g}) rotate(-90)"),
        *marks,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=alt,
    )


def text(x: float, y: float, words: str, kind: str) -> Markup:
    """Words at a position."""
    return tag("text", words, x=x, y=y, class_=kind)


def line(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    """A line through positions."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=kind)


def _tick_x(scale: Scale, value: float) -> Markup:
    at = scale(value)
    return join([line([(at, TOP), (at, BOTTOM)], "grid"), text(at, BOTTOM + 18, number(value), "tick middle")])


def _tick_y(scale: Scale, value: float) -> Markup:
    at = scale(value)
    return join([line([(LEFT, at), (RIGHT, at)], "grid"), text(LEFT - 6, at + 4, number(value), "tick end")])
