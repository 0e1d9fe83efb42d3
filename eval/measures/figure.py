"""One number of a report, and how much it may be off."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        low, high: its interval, where the metric has one.
        details: flat numbers and words that belong to it, such as subset sizes and seeds.
        spread: standard deviation (divided by count - 1) over blocks of seeds; None for a single one.
        values: one per block of seeds, whose mean is `value`; empty for a single one.
    """

    value: float
    low: float | None = None
    high: float | None = None
    details: Mapping[str, float | int | str] = field(default_factory=dict)
    spread: float | None = None
    values: tuple[float, ...] = ()


class NotMeasured(Exception):
    """A figure that these images, this extractor or this reference cannot give; the message says why."""
