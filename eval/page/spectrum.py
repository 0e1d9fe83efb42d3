"""Power by spatial frequency: what distances in classifier features do not see."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from .axes import Scale, line, plot, text
from .markup import Markup, join, note, number, section, tag
from .sides import Row, Sides

_ROUNDING = 1 / 255**2 / 12
_PROMINENT_DB = 3.0
_REACH = 4  # frequencies on either side that a peak is compared with, its direct neighbours left out


@dataclass(frozen=True)
class Curve:
    """A line of a plot: slider key (None: always shown), CSS class, title, and power at 1, 2 ... cycles per image."""

    key: str | None
    kind: str
    title: str
    power: Sequence[float]

    def over(self, real: "Curve") -> list[float]:
        """dB relative to the real images."""
        return [10 * math.log10(own / base) for own, base in zip(self.power, real.power, strict=True)]


@dataclass(frozen=True)
class Peak:
    """A frequency, in cycles per image, that sticks out of its neighbours by `excess` dB."""

    cycles: int
    excess: float


def spectrum(data: Mapping[str, Any], sides: Sides) -> Markup:
    """Power, and power against real images, with peaks marked, and the table of bands."""
    reference = next((_curve(None, "real", row) for row in sides.real if _radial(row)), None)
    curves = [_curve(key, kind, row) for key, kind, row in sides.shown() if _radial(row)]
    if reference is not None:
        curves = [curve for curve in curves if len(curve.power) == len(reference.power)]
    if not curves:
        return Markup()
    plots = [_power(([] if reference is None else [reference]) + curves)]
    if reference is None:
        plots.append(note("Without the real images' pixels there is nothing to compare with."))
    else:
        plots.append(_against(reference, curves))
    return section(
        "spectrum", "Power spectrum", tag("div", *plots, class_="pair"), _LEGEND, _EXPLANATION, _bands(data, sides)
    )


def peaks(levels: Sequence[float]) -> list[Peak]:
    """Local maxima of `levels` (dB at 1, 2 ... cycles) that exceed the median of their surroundings by 3 dB.

    The first level has no left side and is none; the last one may be: the corner of the spectrum is a checkerboard.
    """
    found = []
    for i, level in enumerate(levels):
        around = [levels[j] for j in range(i - _REACH, i + _REACH + 1) if 0 <= j < len(levels) and abs(i - j) > 1]
        beside = [levels[j] for j in (i - 1, i + 1) if 0 <= j < len(levels)]
        if i > 0 and len(around) > 2 and level >= max(beside) and level - median(around) > _PROMINENT_DB:
            found.append(Peak(i + 1, level - median(around)))
    return found


def _radial(row: Row) -> Sequence[Mapping[str, float]]:
    return row["spectrum"]["radial"] if row["spectrum"] else ()


def _curve(key: str | None, kind: str, row: Row) -> Curve:
    return Curve(key, kind, row["title"], [max(point["power"], _ROUNDING) for point in _radial(row)])


def _power(curves: Sequence[Curve]) -> Markup:
    x = _cycles(max(len(curve.power) for curve in curves))
    y = Scale.over([power for curve in curves for power in curve.power], "y", log=True)
    marks = [_line(x, y, curve, curve.power, []) for curve in curves]
    return tag("figure", plot(x, y, (_X_LABEL, "power, log"), marks, "Power by frequency"), class_="plot")


def _against(real: Curve, curves: Sequence[Curve]) -> Markup:
    levels = [curve.over(real) for curve in curves]
    x = _cycles(len(real.power))
    y = Scale.over([0.0, *(level for row in levels for level in row)], "y", log=False)
    zero = line([(x.start, y(0)), (x.end, y(0))], "curve real")
    marks = [zero, *(_line(x, y, curve, own, peaks(own)) for curve, own in zip(curves, levels, strict=True))]
    alt = "Power relative to real images by frequency. " + "; ".join(
        f"{curve.title}: {_listed(peaks(own))}" for curve, own in zip(curves, levels, strict=True)
    )
    return tag("figure", plot(x, y, (_X_LABEL, "dB relative to real images"), marks, alt), class_="plot")


def _line(x: Scale, y: Scale, curve: Curve, levels: Sequence[float], marked: Sequence[Peak]) -> Markup:
    points = [(x(cycles), y(level)) for cycles, level in enumerate(levels, start=1)]
    return tag(
        "g",
        tag("title", f"{curve.title}: {_listed(marked)}" if marked else curve.title),
        line(points, f"curve {curve.kind}"),
        *(join(_flag(points[peak.cycles - 1], peak)) for peak in marked),
        class_=curve.kind,
        data_steps=curve.key,
    )


def _flag(at: tuple[float, float], peak: Peak) -> Iterator[Markup]:
    x, y = at
    yield tag("path", d=f"M{x:.1f} {y - 4:.1f}l-5 -9h10z", class_="dot peak")
    yield text(x, y - 17, f"+{peak.excess:.0f} dB", "tick middle")


def _listed(marked: Sequence[Peak]) -> str:
    return ", ".join(f"peak of {peak.excess:.1f} dB at {peak.cycles} cycles" for peak in marked) or "no peak"


def _cycles(count: int) -> Scale:
    return Scale.over([1.0, float(max(2, count))], "x", log=True)


def _bands(data: Mapping[str, Any], sides: Sides) -> Markup:
    rows = [(key, kind, row) for key, kind, row in sides.shown() if row["spectrum"] and row["spectrum"]["bands"]]
    if not rows:
        return Markup()
    first = rows[0][2]["spectrum"]["bands"]
    heads = [tag("th", f"{number(band['low'])}\u2013{number(band['high'])}", scope="col") for band in first]
    lines = [
        tag(
            "tr",
            tag("th", row["title"], scope="row"),
            *(tag("td", f"{band['db']:+.1f}") for band in row["spectrum"]["bands"]),
            class_=kind,
            data_steps=key,
        )
        for key, kind, row in rows
    ]
    caption = tag("caption", "dB relative to real images, by band in cycles per image")
    table = tag("table", caption, tag("thead", tag("tr", tag("td"), *heads)), tag("tbody", *lines))
    return tag("div", table, class_="scroll", tabindex=0)


_X_LABEL = "cycles per image, log"
_LEGEND = tag(
    "p",
    tag("span", "\u2501 real", class_="real"),
    tag("span", "\u2501 teacher, most steps", class_="many"),
    tag("span", "\u2505 teacher, same few steps", class_="few"),
    tag("span", "\u2501 student", class_="student"),
    tag("span", f"\u25bc peak: {_PROMINENT_DB:g} dB above its surroundings, beyond what real images do"),
    class_="legend",
)
_EXPLANATION = note(
    "Too little power at high frequencies is blur, too much is noise. A peak is a regular pattern, such as the grid "
    "that an upsampling leaves."
)
