"""The report as one HTML file that needs no network: `python -m eval.page FOLDER`.

Reads metrics.json (docs/metrics.md) and the images beside it, embeds everything and writes report.html there.
"""

import argparse
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from fastgen.command import guarded
from fastgen.files import atomic_text

from ..metrics_json import Report
from . import gallery as html_gallery
from . import notes as html_notes
from . import quality as html_quality
from . import spectrum as html_spectrum
from . import tables as html_tables
from .markup import Markup, join, number, tag
from .pictures import Pictures
from .sides import Row, Sides, scatter

PAGE = "report.html"

_HERE = Path(__file__).parent


def write(folder: Path) -> Path:
    """Writes report.html beside metrics.json, whole or not at all, and returns its path.

    Raises:
        UserError: metrics.json is missing, not JSON or of another format, or names a picture outside the folder.
    """
    file = folder / PAGE
    atomic_text(file, page(Report.read(folder).model_dump(mode="json"), Pictures(folder)))
    return file


def page(data: Mapping[str, Any], pictures: Pictures) -> str:
    """The whole document for a parsed metrics.json."""
    sides = Sides.of(data["rows"])
    title = _title(sides)
    style, script = ((_HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    body = tag("body", tag("main", *_sections(data, sides, pictures, title)), tag("script", Markup(script)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _sections(data: Mapping[str, Any], sides: Sides, pictures: Pictures, title: str) -> list[Markup]:
    gallery = data["gallery"]
    return [
        tag("header", tag("h1", title), _tiles(data, sides), html_notes.verdicts(data)),
        html_notes.warnings(data),
        html_gallery.slider(sides),
        html_gallery.grids(gallery, sides, pictures),
        html_tables.headline(data),
        html_quality.quality(data),
        html_gallery.strip(gallery, sides, pictures),
        html_gallery.neighbours(gallery, sides, pictures),
        html_spectrum.spectrum(data, sides),
        html_tables.classes(sides),
        html_tables.definitions(data),
        html_notes.provenance(data),
    ]


def _title(sides: Sides) -> str:
    student = next((stop.student for stop in sides.stops if stop.student is not None), None)
    names = [Path(row["source"]["path"]).name for row in (student, sides.teacher) if row is not None]
    return " beside ".join(names) or "Report"


def _tiles(data: Mapping[str, Any], sides: Sides) -> Markup:
    """The first figure of teacher and student in large print."""
    name = next(iter(data["figures"]), None)
    tiles = [_tile(data, row, name, kind, key) for key, kind, row in sides.shown()]
    return tag("div", *tiles, class_="tiles")


def _tile(data: Mapping[str, Any], row: Row, name: str | None, kind: str, key: str | None) -> Markup:
    figure = row["metrics"].get(name)
    label = data["figures"][name]["label"] if name else ""
    value = f"{label} {number(figure['value'])}" if figure else f"{label} not measured"
    costs = [f"NFE {number(row['nfe'])}" if row["nfe"] is not None else "NFE unknown"]
    if row["costs"]:
        costs.append(f"{number(row['costs']['seconds_per_image'])} s per image")
    if row["num"] is not None:
        costs.append(f"N = {row['num']:,}")
    off = scatter(figure) if figure else ""
    parts = [tag("span", row["title"]), tag("strong", value), tag("small", off), tag("small", ", ".join(costs))]
    return tag("div", join(parts), class_=f"tile {kind}", data_steps=key)


def _policy(script: str) -> str:
    """Nothing is loaded from anywhere, and no script runs but ours."""
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _run(options: argparse.Namespace) -> None:
    print(f"the report is in {write(options.folder)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.page", description="metrics.json and images as one HTML file")
    parser.add_argument("folder", type=Path, help="the folder that python -m eval --out wrote")
    parser.add_argument("--debug", action="store_true", help="show stack traces")
    return parser


def main() -> int:
    """Write the page of a report anew; the exit code."""
    return guarded(_run, _parser().parse_args())
