"""Pictures side by side: the same seeds, one prompt with many seeds, the nearest real images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..images.flagged import flags_of
from ..rows import Row as FullRow
from .markup import Markup, note, number, section, tag
from .pictures import LARGEST, Pictures
from .sides import Row, Sides

Item = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """A grid of the gallery: shown always (key None) or at one position of the slider."""

    key: str | None
    kind: str
    title: str
    row: Row | None


def slider(sides: Sides) -> Markup:
    """The control of the whole page; nothing where there is no choice."""
    keys = [stop.key for stop in sides.stops]
    if len(keys) < 2:
        return Markup()
    options = [tag("option", value=index, label=key) for index, key in enumerate(keys)]
    last = len(keys) - 1
    ruler = tag("input", id="steps", type="range", min=0, max=last, step=1, value=last, list="stops")
    return tag(
        "div",
        tag("label", "Student's steps" if all(map(str.isdecimal, keys)) else "Student", for_="steps"),
        tag("span", ruler, tag("datalist", *options, id="stops"), class_="ruler"),
        tag("output", keys[-1], for_="steps"),
        class_="bar",
    )


def grids(gallery: Mapping[str, Any] | None, sides: Sides, pictures: Pictures) -> Markup:
    """The same seeds from the teacher at many steps, at the student's few, and the student."""
    if gallery is None:
        return Markup()
    figures = [_grid(column, gallery, pictures) for column in _columns(sides)]
    real = [_grid(Column(None, "real", row["title"], row), gallery, pictures) for row in sides.real]
    shown = [one for one, row in zip(real, sides.real, strict=True) if row["id"] in gallery["images"]]
    aside = tag("details", tag("summary", "Real images"), tag("div", *shown, class_="trio")) if shown else Markup()
    return section(
        "gallery",
        "Same seeds, side by side",
        tag("div", *figures, class_="trio"),
        aside,
        note(
            f"Pictures of more than {LARGEST} pixels are reduced here; the originals lie in images/ beside this file."
        ),
    )


def strip(gallery: Mapping[str, Any] | None, sides: Sides, pictures: Pictures) -> Markup:
    """One prompt or label with many seeds, the teacher above the student."""
    wanted = gallery and gallery["strip"]
    if not wanted:
        return Markup()
    lines = [_strip_line(column, wanted, pictures) for column in _columns(sides)]
    asked = _asked(wanted) or "no condition"
    return section(
        "diversity",
        "One prompt, many seeds",
        note(f"{asked}, seeds {_span(wanted['seeds'])}. A student that lost variety repeats itself here."),
        *lines,
    )


def neighbours(gallery: Mapping[str, Any] | None, sides: Sides, pictures: Pictures) -> Markup:
    """Each of the student's samples beside the real images nearest to it."""
    found = gallery["neighbours"] if gallery else {}
    if gallery is None or not any(found.values()):
        return Markup()
    cards = [
        tag(
            "figure",
            tag("figcaption", stop.student["title"]),
            tag("div", *_cards(stop.student, gallery, pictures), class_="cards"),
            class_="near student",
            data_steps=stop.key,
        )
        for stop in sides.stops
        if stop.student is not None
    ]
    rows = [(key, row["title"], found[row["id"]]) for key, _, row in sides.shown() if found.get(row["id"])]
    medians = [
        tag("li", f"{title}: {number(median(near[0]['distance'] for near in lists if near))}", data_steps=key)
        for key, title, lists in rows
        if any(lists)
    ]
    return section(
        "neighbours",
        "Nearest real images",
        note(
            "Left: a sample of the student; then the real images nearest to it by distance in the extractor's "
            "features. A near copy may be memorised. Median distance to the nearest, over these pictures:"
        ),
        tag("ul", *medians, class_="note"),
        *cards,
    )


def _columns(sides: Sides) -> Iterator[Column]:
    if sides.teacher is not None:
        yield Column(None, "many", sides.teacher["title"], sides.teacher)
    for stop in sides.stops:
        if stop.teacher is not None or sides.lacks_teacher(stop):
            title = f"teacher, steps: {stop.key}" if stop.teacher is None else stop.teacher["title"]
            yield Column(stop.key, "few", title, stop.teacher)
        if stop.student is not None:
            yield Column(stop.key, "student", stop.student["title"], stop.student)


def _grid(column: Column, gallery: Mapping[str, Any], pictures: Pictures) -> Markup:
    paths = _paths(column, gallery["images"])
    cells = [
        tag(
            "li",
            _picture(path, column, item, pictures),
            tag("small", flags_of(column.row and FullRow(**column.row), index)),
            tag("span", _asked(item), class_="asked"),
            data_item=index,
        )
        for index, (path, item) in enumerate(zip(paths, gallery["items"], strict=False))
    ]
    caption = tag("figcaption", column.title, _why_empty(column, paths), _whose(column, paths))
    body = tag("ol", *cells) if cells else Markup()
    return tag("figure", caption, body, class_=f"grid {column.kind}", data_steps=column.key)


def _picture(path: str | None, column: Column, item: Item, pictures: Pictures) -> Markup:
    if path is None:
        return tag("small", "could not be used")
    drawn = column.row is not None and column.row["source"]["kind"] == "pipeline"
    words = [column.title, f"seed {item['seed']}" if drawn else "", _asked(item) if drawn else ""]
    return pictures.show(path, ", ".join(word for word in words if word))


def _strip_line(column: Column, wanted: Mapping[str, Any], pictures: Pictures) -> Markup:
    paths = _paths(column, wanted["images"])
    cells = [
        tag("li", pictures.show(path, f"{column.title}, {_asked(wanted)}, seed {seed}"))
        for path, seed in zip(paths, wanted["seeds"], strict=False)
    ]
    caption = tag("figcaption", column.title, _why_empty(column, paths))
    return tag("figure", caption, tag("ol", *cells), class_=f"strip {column.kind}", data_steps=column.key)


def _cards(row: Row, gallery: Mapping[str, Any], pictures: Pictures) -> Iterator[Markup]:
    column = Column(None, "student", row["title"], row)
    found: Sequence[Sequence[Mapping[str, Any]]] = gallery["neighbours"].get(row["id"], ())
    if not found:
        yield note(f"{row['title']}: nearest images were not measured.")
    paths = _paths(column, gallery["images"])
    for path, item, near in zip(paths, gallery["items"], found, strict=False):
        yield tag(
            "ol", tag("li", _picture(path, column, item, pictures), "sample"), *_near(near, pictures), class_="card"
        )


def _near(found: Iterable[Mapping[str, Any]], pictures: Pictures) -> Iterator[Markup]:
    for one in found:
        alt = f"real image {one['index']}, distance {number(one['distance'])}"
        yield tag("li", pictures.show(one["image"], alt), number(one["distance"]))


def _paths(column: Column, images: Mapping[str, Sequence[Any]]) -> Sequence[Any]:
    return () if column.row is None else images.get(column.row["id"], ())


def _why_empty(column: Column, paths: Sequence[Any]) -> Markup:
    if paths:
        return Markup()
    return tag("small", "was not measured" if column.row is None else "has no pictures")


def _whose(column: Column, paths: Sequence[Any]) -> Markup:
    files = column.row is not None and column.row["source"]["kind"] != "pipeline"
    return tag("small", "first images of its files, not of these seeds") if files and paths else Markup()


def _asked(item: Item) -> str:
    if item["prompt"] is not None:
        return f"\u201c{item['prompt']}\u201d"
    if item["label"] is None:
        return ""
    return f"class {item['label']}" + (f" {item['class_name']}" if item["class_name"] else "")


def _span(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if seeds else "none"
