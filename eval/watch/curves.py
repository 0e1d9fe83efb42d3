"""The figures of a run as curves over the images it has seen."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..page.axes import Axes, Line, Scale
from ..page.words import number
from .files import Entry

MOST_POINTS = 300
"""Of a curve; more are averaged."""
COLOURS = 5
"""Kinds of lines that a page tells apart, CSS classes c0, c1 ..."""
WIDE = 20.0
"""Largest over smallest value from which a scale is logarithmic."""
OF_FEW = " of few samples"
_WORDS = {
    "pace/images_per_second": "images per second",
    "pace/seconds_per_cycle": "seconds per cycle",
    "pace/waited_for_data": "seconds per cycle waited for data",
    "memory/gib": "memory held (GiB)",
    "memory/peak_gib": "most memory held (GiB)",
}
Points = Sequence[tuple[float, float]]
"""Images seen, value."""


@dataclass(frozen=True)
class Curve:
    """A named line, and its last value in words."""

    name: str
    line: Line
    last: str


@dataclass(frozen=True)
class Plot:
    """Curves that belong together; `stages` are the places where one ends."""

    title: str
    axes: Axes
    curves: tuple[Curve, ...]
    stages: tuple[float, ...]

    @property
    def named(self) -> bool:
        """Whether its curves have names that its title does not say."""
        return [curve.name for curve in self.curves] != [self.title.removesuffix(OF_FEW)]


@dataclass(frozen=True)
class Curves:
    """All plots of a run, those of its quality first."""

    quality: tuple[Plot, ...]
    losses: tuple[Plot, ...]
    machine: tuple[Plot, ...]

    def __bool__(self) -> bool:
        return bool(self.quality or self.losses or self.machine)

    @classmethod
    def of(cls, log: Iterable[Entry], pace: Iterable[Entry] = ()) -> "Curves":
        """The curves of a run's logs."""
        log = list(log)
        starts = _starts(log)
        return cls.drawn(_series(log, starts), stages=ends(log), machine=_series(pace, starts))

    @classmethod
    def drawn(
        cls, series: Mapping[str, Points], *, stages: tuple[float, ...], machine: Mapping[str, Points] | None = None
    ) -> "Curves":
        """The curves of figures by name, such as "generator/dm", and of those of the machine."""
        losses, others = dict[str, dict[str, Points]](), dict[str, dict[str, Points]]()
        quality, known = {}, machine or {}
        for name, points in series.items():
            role, _, what = name.partition("/")
            if role == "quality":
                quality[f"{what}{OF_FEW}"] = {what: points}
            elif what == "grad":
                others.setdefault("gradient norms", {})[role] = points
            elif what == "lr":
                others.setdefault("learning rates", {})[role] = points
            elif what:
                losses.setdefault(f"losses of {role}", {})[what] = points
        shown = {words: {words: known[name]} for name, words in _WORDS.items() if name in known}
        groups = (quality, {**losses, **others}, shown)
        return cls(*(tuple(_plots(group, stages)) for group in groups))


def series_of(log: Sequence[Entry]) -> dict[str, Points]:
    """The figures of a log by name, over the images of the whole run."""
    return _series(log, _starts(log))


def ends(log: Sequence[Entry]) -> tuple[float, ...]:
    """Images of the whole run at which a stage ended and another began."""
    starts = _starts(log)
    return tuple(starts[stage] for stage in sorted(starts)[1:])


def _starts(log: Sequence[Entry]) -> dict[int, float]:
    """Images of the whole run at which each stage begins."""
    ends: dict[int, float] = {}
    for entry in log:
        ends[entry.stage] = max(ends.get(entry.stage, 0.0), entry.images or 0.0)
    starts, total = {}, 0.0
    for stage in sorted(ends):
        starts[stage] = total
        total += ends[stage]
    return starts


def _series(log: Iterable[Entry], starts: Mapping[int, float]) -> dict[str, Points]:
    series: dict[str, list[tuple[float, float]]] = {}
    for entry in log:
        if entry.images is not None:
            for name, value in entry.figures.items():
                series.setdefault(name, []).append((starts.get(entry.stage, 0.0) + entry.images, value))
    return {name: _thinned(points) for name, points in series.items()}


def _thinned(points: Points) -> Points:
    """At most so many, each the mean of its neighbours; the last one stays."""
    if len(points) <= MOST_POINTS:
        return points
    edges = [index * (len(points) - 1) // MOST_POINTS for index in range(MOST_POINTS + 1)]
    parts = (points[low:high] for low, high in pairwise(edges))
    means = [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]
    return [*means, points[-1]]


def _plots(groups: Mapping[str, Mapping[str, Points]], ends: Sequence[float]) -> Iterator[Plot]:
    for title, series in groups.items():
        axes = _axes(title, series)
        curves = (
            Curve(name, Line(f"c{place % COLOURS}", tuple(_drawn(axes, points))), number(points[-1][1]))
            for place, (name, points) in enumerate(series.items())
        )
        yield Plot(title, axes, tuple(curves), tuple(axes.x(end) for end in ends if axes.x.low < end < axes.x.high))


def _drawn(axes: Axes, points: Points) -> Iterator[tuple[float, float]]:
    return (axes.at(x, max(y, axes.y.low) if axes.y.log else y) for x, y in points)


def _axes(title: str, series: Mapping[str, Points]) -> Axes:
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    positive = [y for y in ys if y > 0]
    log = len(positive) == len(ys) and max(ys) > WIDE * min(ys)
    said = (f"{name} {number(points[0][1])} to {number(points[-1][1])}" for name, points in series.items())
    return Axes(
        x=Scale.over([0.0, *xs], "x", log=False, margin=0.0),
        y=Scale.over(ys, "y", log=log),
        x_label="images",
        y_label="log" if log else "",
        words=f"{title} over {number(max(xs))} images: {'; '.join(said)}",
    )
