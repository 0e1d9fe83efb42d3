"""The headline table, the table by class and the definitions."""

from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase
from typing import Any

from .markup import Markup, join, note, number, section, tag
from .sides import Row, Sides, scatter

_ARROWS = {"lower": "\u2193", "higher": "\u2191", "one": "\u2192\u00a01", "zero": "\u2192\u00a00"}
_WORDS = {"lower": "lower", "higher": "higher", "one": "near 1", "zero": "near 0"}
_CAVEAT = "Figures of another protocol, or of another N, are not comparable with these."
_COSTS = (
    ("NFE", "nfe", "network calls per image, a guided pair counts two"),
    ("s/image", "seconds_per_image", "median over batches"),
    ("images/s", "images_per_second", "of all processes together"),
    ("peak GiB", "peak_memory_gib", "largest GPU allocation"),
)


def headline(data: Mapping[str, Any]) -> Markup:
    """One line per image set, every figure with its interval, and why a figure is missing."""
    figures, rows = data["figures"], data["rows"]
    reasons = {reason: None for row in rows for reason in row["not_measured"].values()}
    letters = {reason: _letter(index) for index, reason in enumerate(reasons)}
    costs = [cost for cost in _COSTS if any(_cost(row, cost[1]) is not None for row in rows)]
    heads = [
        tag("th", "N", scope="col", title="images measured"),
        *(tag("th", name, scope="col", title=words) for name, _, words in costs),
        *(_head(about) for about in figures.values()),
    ]
    lines = [_line(row, [key for _, key, _ in costs], figures, letters) for row in rows]
    table = tag("table", tag("thead", tag("tr", tag("td"), *heads)), tag("tbody", *lines), class_="headline")
    notes = [tag("li", tag("sup", letter), f" not measured: {reason}") for reason, letter in letters.items()]
    return section(
        "table",
        "All figures",
        note(_measured_by(data["protocol"])),
        tag("div", table, class_="scroll", tabindex=0),
        tag("ul", *notes, class_="note plain") if notes else Markup(),
        note("\u2193 lower is better, \u2191 higher is better, \u2192 best near that value. \u2013 does not apply."),
    )


def classes(sides: Sides) -> Markup:
    """Accuracy and diversity by class, sortable by any column."""
    columns = [(key, kind, row) for key, kind, row in sides.shown() if row["per_class"]]
    names = {one["label"]: one["name"] for _, _, row in columns for one in row["per_class"]}
    if not names:
        return Markup()
    heads = [
        _sortable("class", None),
        *(_sortable(f"{row['title']}: {what}", key) for key, _, row in columns for what in _KINDS),
    ]
    by_label = [(key, kind, {one["label"]: one for one in row["per_class"]}) for key, kind, row in columns]
    lines = [_class_line(label, name, by_label) for label, name in sorted(names.items())]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines), class_="sortable")
    return section(
        "classes",
        "By class",
        note("Click a heading to sort. A dash was not measured."),
        tag("div", table, class_="scroll tall", tabindex=0),
    )


def definitions(data: Mapping[str, Any]) -> Markup:
    """What each figure is, where it comes from and what its interval means."""
    lines = [
        tag(
            "tr",
            tag("th", about["label"], scope="row"),
            *(tag("td", words or "\u2013") for words in (name, _WORDS[about["better"]], about["unit"], about["paper"])),
            tag("td", about["interval"] or "no interval"),
        )
        for name, about in data["figures"].items()
    ]
    heads = [tag("th", name, scope="col") for name in ("figure", "name", "better", "unit", "paper", "interval")]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines), class_="words")
    return section("definitions", "Definitions", tag("div", table, class_="scroll", tabindex=0)) if lines else Markup()


def _measured_by(protocol: Mapping[str, Any]) -> str:
    size = f"{protocol['dim']:,} dimensions, {protocol['precision']}"
    clip = f" CLIP: {protocol['clip']}." if protocol["clip"] else ""
    return f"Protocol {protocol['name']}: {protocol['extractor']}; {size}.{clip} {_CAVEAT}"


def _letter(index: int) -> str:
    return ascii_lowercase[index] if index < len(ascii_lowercase) else str(index + 1)


def _head(about: Mapping[str, Any]) -> Markup:
    unit = f" ({about['unit']})" if about["unit"] else ""
    explained = "; ".join(part for part in (about["paper"], about["interval"]) if part)
    return tag("th", f"{about['label']}{unit} {_ARROWS[about['better']]}", scope="col", title=explained or None)


def _cost(row: Row, key: str) -> float | None:
    """Network calls are also known of rows that were not timed."""
    value: float | None = row["nfe"] if key == "nfe" else (row["costs"] or {}).get(key)
    return value


def _line(row: Row, costs: Iterable[str], figures: Iterable[str], letters: Mapping[str, str]) -> Markup:
    return tag(
        "tr",
        tag("th", row["title"], scope="row"),
        tag("td", "unknown" if row["num"] is None else f"{row['num']:,}"),
        *(tag("td", number(value)) for value in (_cost(row, key) for key in costs)),
        *(_figure(row, name, letters) for name in figures),
        class_=row["role"],
    )


def _figure(row: Row, name: str, letters: Mapping[str, str]) -> Markup:
    reason = row["not_measured"].get(name)
    figure = row["metrics"].get(name)
    if figure is None and reason is not None:
        return tag("td", "n/m", tag("sup", letters[reason]), title=f"not measured: {reason}", class_="missing")
    if figure is None:
        return tag("td", number(None))
    details = "; ".join(f"{key} {value}" for key, value in figure["details"].items())
    return tag("td", number(figure["value"]), _off(figure), title=details or None)


def _off(figure: Mapping[str, Any]) -> Markup:
    words = scatter(figure)
    return join([tag("small", words)]) if words else Markup()


_KINDS = ("N", "accuracy", "diversity")
_FIELDS = ("num", "accuracy", "diversity")


def _sortable(title: str, key: str | None) -> Markup:
    return tag("th", tag("button", title, type="button"), scope="col", aria_sort="none", data_steps=key)


def _class_line(label: int, name: str, columns: Sequence[tuple[str | None, str, Mapping[int, Any]]]) -> Markup:
    cells = [
        tag("td", number(value), data_value="" if value is None else repr(value), class_=kind, data_steps=key)
        for key, kind, classes in columns
        for value in (classes.get(label, {}).get(field) for field in _FIELDS)
    ]
    title = name if name == str(label) else f"{label} {name}"
    return tag("tr", tag("th", title, scope="row", data_value=str(label)), *cells)
