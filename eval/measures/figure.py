"""One number of a report, and how much it may be off."""

from collections.abc import Mapping
from dataclasses import field

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False, use_attribute_docstrings=True))
class Figure:
    """A measured value."""

    value: float
    """The value; of several blocks of seeds their mean."""
    low: float | None = None
    """The lower end of its interval; null where the metric has none."""
    high: float | None = None
    """The upper end."""
    details: Mapping[str, int | float | str] = field(default_factory=dict)
    """Flat numbers and words that belong to it: subset sizes, seeds, R^2, k."""
    spread: float | None = None
    """Standard deviation (divided by count - 1) over blocks of seeds; null for a single one."""
    values: tuple[float, ...] = ()
    """The value of each block of seeds; empty for a single one."""


class NotMeasured(Exception):
    """A figure that these images, this extractor or this reference cannot give; the message says why."""
