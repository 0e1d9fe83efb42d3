"""Quality against network calls and against seconds: who is better at what price."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..measures.figure import Figure
from ..metrics_json import About, Report
from ..rows import Row
from .axes import Axes, Line, Scale
from .words import number

_PRICES: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
    ("nfe", "network calls per image (NFE)", lambda row: row.nfe),
    ("seconds", "seconds per image (median)", lambda row: None if row.costs is None else row.costs.seconds_per_image),
)
_LOSS: Mapping[str, Callable[[float], float]] = {
    "lower": lambda value: value,
    "higher": lambda value: -value,
    "one": lambda value: abs(value - 1),
    "zero": abs,
}
_WISH = {"lower": "lower is better", "higher": "higher is better", "one": "best near 1", "zero": "best near 0"}
_WIDE = 8.0  # quality gets a logarithmic axis where the largest value is this many times the smallest


@dataclass(frozen=True)
class Point:
    """A row in a plot: its price and its figure."""

    row: Row
    price: float
    figure: Figure

    @property
    def ends(self) -> tuple[float, float]:
        """One spread over blocks of seeds on either side, or the interval; the value alone where there is neither."""
        value, low, high, spread = self.figure.value, self.figure.low, self.figure.high, self.figure.spread
        if spread is not None:
            return (value - spread, value + spread)
        return (value if low is None else low, value if high is None else high)

    @property
    def words(self) -> str:
        low, high = self.ends
        interval = f" [{number(low)}, {number(high)}]" if low != high else ""
        return f"{self.row.title}: {number(self.figure.value)}{interval} at {number(self.price)}"


@dataclass(frozen=True)
class Mark:
    """A point as drawn at (x, y), its interval between the heights low and high.

    Attributes:
        best: no row is both better and cheaper.
    """

    row: Row
    words: str
    x: float
    y: float
    low: float
    high: float
    best: bool


@dataclass(frozen=True)
class Plot:
    """A figure against a price; `floor` is the figure of held-out real images."""

    kind: str
    axes: Axes
    floor: float | None
    curves: tuple[Line, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Quality:
    """Plots by figure, and rows of which no price is known."""

    panels: Mapping[str, tuple[Plot, ...]]
    unpriced: tuple[Row, ...]

    @classmethod
    def of(cls, report: Report) -> "Quality":
        panels = {name: tuple(_plots(report, name)) for name in report.figures}
        unpriced = (row for row in report.rows if row.role != "real" and row.nfe is None and row.costs is None)
        return cls({name: plots for name, plots in panels.items() if plots}, tuple(unpriced))


def _plots(report: Report, name: str) -> Iterator[Plot]:
    for kind, price_label, price in _PRICES:
        rows = [row for row in report.rows if row.role != "real" and name in row.metrics]
        priced = [(row, price(row)) for row in rows]
        points = [Point(row, cost, row.metrics[name]) for row, cost in priced if cost]
        if points:
            floor = next((row.metrics[name].value for row in report.rows if _is_floor(row, name)), None)
            about = report.figures[name]
            axes = _axes(points, floor, about, price_label)
            yield Plot(kind, axes, floor, tuple(_curves(axes, points)), tuple(_marks(axes, points, about)))


def _is_floor(row: Row, name: str) -> bool:
    return row.role == "real" and name in row.metrics


def _axes(points: Sequence[Point], floor: float | None, about: About, price: str) -> Axes:
    values = [point.figure.value for point in points]
    log = min(values) > 0 and max(values) > _WIDE * min(values)
    heights = [end for point in points for end in point.ends] + ([] if floor is None else [floor])
    y = Scale.over([height for height in heights if height > 0 or not log], "y", log=log)
    unit = f" ({about.unit})" if about.unit else ""
    return Axes(
        x=Scale.over([point.price for point in points], "x", log=True),
        y=y,
        x_label=f"{price}, log",
        y_label=f"{about.label}{unit}, {_WISH[about.better]}{', log' if y.log else ''}",
        words=f"{about.label} against {price}: " + "; ".join(point.words for point in points),
    )


def _curves(axes: Axes, points: Sequence[Point]) -> Iterator[Line]:
    for role in ("teacher", "student"):
        own = sorted((point.price, point.figure.value) for point in points if point.row.role == role)
        yield Line(role, tuple(axes.at(price, value) for price, value in own))


def _marks(axes: Axes, points: Sequence[Point], about: About) -> Iterator[Mark]:
    loss = _LOSS[about.better]
    for point in points:
        x, y = axes.at(point.price, point.figure.value)
        low, high = (axes.y(max(end, axes.y.low)) for end in point.ends)
        best = not any(_beats(other, point, loss) for other in points)
        yield Mark(point.row, point.words, x, y, low, high, best)


def _beats(other: Point, point: Point, loss: Callable[[float], float]) -> bool:
    """Whether `other` is at least as good and as cheap, and better in one of the two."""
    theirs, own = ((loss(one.figure.value), one.price) for one in (other, point))
    return theirs != own and theirs[0] <= own[0] and theirs[1] <= own[1]
