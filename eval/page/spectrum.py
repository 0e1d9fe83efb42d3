"""Power by spatial frequency: what distances in classifier features do not see."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ..rows import Band, Row
from .axes import At, Axes, Line, Scale
from .sides import Column, Sides

PROMINENT_DB = 3.0
"""By how much a peak exceeds its surroundings."""

_ROUNDING = 1 / 255**2 / 12
_REACH = 4  # frequencies on either side that a peak is compared with, its direct neighbours left out
_X_LABEL = "cycles per image, log"


@dataclass(frozen=True)
class Peak:
    """A frequency, in cycles per image, that sticks out of its neighbours by `excess` dB."""

    cycles: int
    excess: float


@dataclass(frozen=True)
class Curve:
    """A column's line in a plot, and where its peaks are."""

    column: Column
    line: Line
    words: str
    peaks: tuple[tuple[At, Peak], ...] = ()


@dataclass(frozen=True)
class Plot:
    """Curves in their frame; `zero` is the height of real images where the curves are relative to them."""

    axes: Axes
    curves: tuple[Curve, ...]
    zero: float | None = None


@dataclass(frozen=True)
class Spectrum:
    """Power by frequency.

    Attributes:
        relative: the same over the real images' power; None without their pixels.
        bands: errors of every column against real images, by band.
    """

    power: Plot
    relative: Plot | None
    bands: tuple[tuple[Column, tuple[Band, ...]], ...]

    @classmethod
    def of(cls, sides: Sides) -> "Spectrum | None":
        """The spectrum of a report; None where no generated images have one, at the size of the real ones."""
        reference = ((Column(None, "real", row.title, row), _power(row)) for row in sides.real)
        real = next((one for one in reference if one[1]), None)
        drawn = [(column, power) for column, row in sides.shown if (power := _power(row))]
        drawn = [(column, power) for column, power in drawn if real is None or len(power) == len(real[1])]
        if not drawn:
            return None
        measured = ((column, row.spectrum.bands) for column, row in sides.shown if row.spectrum is not None)
        return cls(
            power=_by_frequency([*([real] if real else []), *drawn]),
            relative=_against(real[1], drawn) if real else None,
            bands=tuple((column, bands) for column, bands in measured if bands),
        )


def peaks(levels: Sequence[float]) -> list[Peak]:
    """Local maxima of `levels` (dB at 1, 2 ... cycles) that exceed the median of their surroundings by 3 dB.

    The first level has no left side and is none; the last one may be: the corner of the spectrum is a checkerboard.
    """
    found = []
    for i, level in enumerate(levels):
        around = [levels[j] for j in range(i - _REACH, i + _REACH + 1) if 0 <= j < len(levels) and abs(i - j) > 1]
        beside = [levels[j] for j in (i - 1, i + 1) if 0 <= j < len(levels)]
        if i > 0 and len(around) > 2 and level >= max(beside) and level - median(around) > PROMINENT_DB:
            found.append(Peak(i + 1, level - median(around)))
    return found


def _power(row: Row) -> list[float]:
    """A row's power at 1, 2 ... cycles per image; empty where it was not measured."""
    return [max(point.power, _ROUNDING) for point in row.spectrum.radial] if row.spectrum else []


def _by_frequency(curves: Sequence[tuple[Column, list[float]]]) -> Plot:
    axes = Axes(
        x=_cycles(max(len(power) for _, power in curves)),
        y=Scale.over([level for _, power in curves for level in power], "y", log=True),
        x_label=_X_LABEL,
        y_label="power, log",
        words="Power by frequency",
    )
    return Plot(axes, tuple(Curve(column, _line(axes, column, power), column.title) for column, power in curves))


def _against(real: Sequence[float], curves: Sequence[tuple[Column, list[float]]]) -> Plot:
    """dB relative to the real images."""
    levels = [
        (column, [10 * math.log10(own / base) for own, base in zip(power, real, strict=True)])
        for column, power in curves
    ]
    named = [f"{column.title}: {_listed(peaks(own)) or 'no peak'}" for column, own in levels]
    axes = Axes(
        x=_cycles(len(real)),
        y=Scale.over([0.0, *(level for _, own in levels for level in own)], "y", log=False),
        x_label=_X_LABEL,
        y_label="dB relative to real images",
        words=f"Power relative to real images by frequency. {'; '.join(named)}",
    )
    return Plot(axes, tuple(_with_peaks(axes, column, own) for column, own in levels), zero=axes.y(0))


def _with_peaks(axes: Axes, column: Column, levels: Sequence[float]) -> Curve:
    found = peaks(levels)
    line = _line(axes, column, levels)
    words = f"{column.title}: {_listed(found)}" if found else column.title
    return Curve(column, line, words, tuple((line.points[peak.cycles - 1], peak) for peak in found))


def _line(axes: Axes, column: Column, levels: Sequence[float]) -> Line:
    return Line(column.kind, tuple(axes.at(cycles, level) for cycles, level in enumerate(levels, start=1)))


def _listed(found: Sequence[Peak]) -> str:
    return ", ".join(f"peak of {peak.excess:.1f} dB at {peak.cycles} cycles" for peak in found)


def _cycles(count: int) -> Scale:
    return Scale.over([1.0, float(max(2, count))], "x", log=True)
