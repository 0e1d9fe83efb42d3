"""Quality against network calls and against seconds: who is better at what price."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .axes import Scale, line, plot, text
from .markup import Markup, bullets, join, note, number, section, tag
from .sides import Row

_PRICES: tuple[tuple[str, str, Callable[[Row], float | None]], ...] = (
    ("nfe", "network calls per image (NFE)", lambda row: row["nfe"]),
    ("seconds", "seconds per image (median)", lambda row: row["costs"] and row["costs"]["seconds_per_image"]),
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
    figure: Mapping[str, Any]

    @property
    def ends(self) -> tuple[float, float]:
        """One spread over blocks of seeds on either side, or the interval; the value alone where there is neither."""
        value, low, high, spread = (self.figure[name] for name in ("value", "low", "high", "spread"))
        if spread is not None:
            return (value - spread, value + spread)
        return (value if low is None else low, value if high is None else high)


def quality(data: Mapping[str, Any]) -> Markup:
    """A pair of plots per figure, chosen by a menu."""
    panels = {name: _panel(data, name) for name in data["figures"]}
    panels = {name: panel for name, panel in panels.items() if panel}
    options = [tag("option", data["figures"][name]["label"], value=name) for name in panels]
    menu = tag("label", "Figure ", tag("select", *options, data_control="figure"), class_="control")
    missing = [
        f"{row['title']} is not in a plot: what drawing it cost is not known."
        for row in data["rows"]
        if row["role"] != "real" and row["nfe"] is None and row["costs"] is None
    ]
    shown = [menu, *panels.values(), _LEGEND] if panels else []
    return section("quality", "Quality against cost", *shown, bullets(missing, class_="note"))


def _panel(data: Mapping[str, Any], name: str) -> Markup:
    plots = [_plot(data, name, *price) for price in _PRICES]
    return tag("div", *plots, class_="pair", data_figure=name) if any(plots) else Markup()


def _plot(
    data: Mapping[str, Any], name: str, key: str, price_label: str, price: Callable[[Row], float | None]
) -> Markup:
    rows = [row for row in data["rows"] if row["role"] != "real" and name in row["metrics"] and price(row)]
    points = [Point(row, float(price(row) or 0), row["metrics"][name]) for row in rows]
    if not points:
        return Markup()
    about = data["figures"][name]
    floor = next((row["metrics"][name]["value"] for row in data["rows"] if _is_floor(row, name)), None)
    heights = [end for point in points for end in point.ends] + ([] if floor is None else [floor])
    values = [point.figure["value"] for point in points]
    log = min(values) > 0 and max(values) > _WIDE * min(values)
    y = Scale.over([height for height in heights if height > 0 or not log], "y", log=log)
    x = Scale.over([point.price for point in points], "x", log=True)
    marks = [_floor(x, y, floor), *_curves(x, y, points), *_marks(x, y, points, about)]
    unit = f" ({about['unit']})" if about["unit"] else ""
    y_label = f"{about['label']}{unit}, {_WISH[about['better']]}{', log' if y.log else ''}"
    alt = f"{about['label']} against {price_label}: " + "; ".join(_words(point) for point in points)
    return tag("figure", plot(x, y, (f"{price_label}, log", y_label), marks, alt), class_=f"plot {key}")


def _is_floor(row: Row, name: str) -> bool:
    return row["role"] == "real" and name in row["metrics"]


def _floor(x: Scale, y: Scale, value: float | None) -> Markup:
    if value is None:
        return Markup()
    at = y(value)
    label = text(x.start + 6, at - 5, f"real images {number(value)}", "tick")
    return join([line([(x.start, at), (x.end, at)], "floor"), label])


def _curves(x: Scale, y: Scale, points: Sequence[Point]) -> Iterator[Markup]:
    for role in ("teacher", "student"):
        own = sorted((point.price, point.figure["value"]) for point in points if point.row["role"] == role)
        yield line([(x(price), y(value)) for price, value in own], f"curve {role}")


def _marks(x: Scale, y: Scale, points: Sequence[Point], about: Mapping[str, Any]) -> Iterator[Markup]:
    loss = _LOSS[about["better"]]
    for point in points:
        role, at, height = point.row["role"], x(point.price), y(point.figure["value"])
        best = not any(_beats(other, point, loss) for other in points)
        low, high = (y(max(end, y.low)) for end in point.ends)
        steps = point.row["steps"]
        yield tag(
            "g",
            tag("title", _words(point)),
            line([(at, low), (at, high)], "interval"),
            tag("circle", cx=at, cy=height, r=9, class_="front") if best else Markup(),
            _marker(role, at, height),
            text(at + 11, height - 8, "" if steps is None else str(steps), "tick"),
            class_=role,
            tabindex=0,
        )


def _marker(role: str, x: float, y: float) -> Markup:
    if role == "student":
        return tag("rect", x=x - 5, y=y - 5, width=10, height=10, class_="dot")
    return tag("circle", cx=x, cy=y, r=5, class_="dot")


def _beats(other: Point, point: Point, loss: Callable[[float], float]) -> bool:
    """Whether `other` is at least as good and as cheap, and better in one of the two."""
    theirs, own = ((loss(one.figure["value"]), one.price) for one in (other, point))
    return theirs != own and theirs[0] <= own[0] and theirs[1] <= own[1]


def _words(point: Point) -> str:
    low, high = point.ends
    interval = f" [{number(low)}, {number(high)}]" if low != high else ""
    return f"{point.row['title']}: {number(point.figure['value'])}{interval} at {number(point.price)}"


_LEGEND = join(
    [
        tag(
            "p",
            tag("span", "\u25cf teacher", class_="teacher"),
            tag("span", "\u25a0 student", class_="student"),
            tag("span", "\u25cb ringed: no row is both better and cheaper"),
            class_="legend",
        ),
        note(
            "Numbers beside the marks are sampler steps, bars are intervals (see the definitions below) or, of several "
            "blocks of seeds, one standard deviation to either side."
        ),
    ]
)
