"""The report as one HTML file that needs no network: `python -m eval.page FOLDER`.

Reads metrics.json (docs/metrics.md) and the images beside it, embeds everything and writes report.html there.
"""

import argparse
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fastgen.command import guarded, place
from fastgen.files import atomic_text

from ..metrics_json import Report
from . import words
from .pictures import Pictures
from .view import View

PAGE = "report.html"

_HERE = Path(__file__).parent
_JINJA = Environment(
    loader=FileSystemLoader(_HERE),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_FILTERS = (words.number, words.plain, words.details, words.scatter, words.lines_of, words.found)
_JINJA.filters |= {one.__name__: one for one in _FILTERS}


def write(folder: Path) -> Path:
    """Writes report.html beside metrics.json, whole or not at all, and returns its path.

    Raises:
        UserError: metrics.json is missing, not JSON or of another format, or names a picture outside the folder.
    """
    file = folder / PAGE
    atomic_text(file, page(Report.read(folder), Pictures(folder)))
    return file


def page(report: Report, pictures: Pictures) -> str:
    """The whole document."""
    return document("report.html.jinja", "report.js", view=View.of(report, pictures))


def document(template: str, script: str, *, allowed: str = "", **values: Any) -> str:
    """A page of these parts, with its style and its script in it; all values are escaped.

    Args:
        allowed: what its policy allows beside pictures within the page, our style and our script.
    """
    style, code = _text("report.css"), _text(script)
    policy = policy_of(script, allowed)
    return _JINJA.get_template(template).render(**values, policy=policy, style=Markup(style), script=Markup(code))


def policy_of(script: str, allowed: str = "") -> str:
    """A content security policy under which nothing is loaded from elsewhere, and no script runs but ours."""
    digest = b64encode(sha256(_text(script).encode()).digest()).decode()
    own = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"{own}; {allowed}" if allowed else own


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _run(options: argparse.Namespace) -> None:
    print(f"the report is in {write(options.folder)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval.page", description="metrics.json and images as one HTML file")
    parser.add_argument("folder", type=place, help="the folder that python -m eval --out wrote")
    parser.add_argument("--debug", action="store_true", help="show stack traces")
    return parser


def main() -> int:
    """Write the page of a report anew; the exit code."""
    return guarded(_run, _parser().parse_args())
