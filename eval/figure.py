"""One number of a report, and how much it may be off."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Figure:
    """A measured value.

    Attributes:
        low, high: its interval, where the metric has one.
        details: flat numbers and words that belong to it, such as subset sizes and seeds.
    """

    value: float
    low: float | None = None
    high: float | None = None
    details: Mapping[str, float | int | str] = field(default_factory=dict)


class NotMeasured(Exception):
    """A figure that these images, this extractor or this reference cannot give; the message says why."""
