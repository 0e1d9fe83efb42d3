"""The report: one row per image set, as JSON and as a table for the terminal."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fastgen.files import atomic_json

from .observe import Figures
from .options import Options
from .sources import Origin

FILE = "metrics.json"


@dataclass(frozen=True)
class Row:
    """One image set of the report."""

    role: Literal["real", "teacher", "student"]
    origin: Origin
    figures: Figures


@dataclass(frozen=True)
class Report:
    """Rows that were measured on one protocol.

    Attributes:
        extractor: its identity.
        dim: of its features.
        device: where everything ran, in words.
        versions: of the libraries behind the figures.
        reference_extractor: identity in the reference's statistics; None when a foreign file does not say.
    """

    options: Options
    extractor: str
    dim: int
    device: str
    versions: dict[str, str]
    reference_extractor: str | None
    rows: tuple[Row, ...]


def write(report: Report, folder: Path) -> None:
    """Writes metrics.json, whole or not at all."""
    settings = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(report.options).items()
    }
    atomic_json(
        folder / FILE,
        {
            "format": 1,
            "extractor": {"identity": report.extractor, "dim": report.dim},
            "reference_extractor": report.reference_extractor,
            "device": report.device,
            "versions": report.versions,
            "settings": settings,
            "rows": [_as_json(row) for row in report.rows],
        },
    )


def table(report: Report) -> str:
    """The rows side by side, and under them what they may be compared with."""
    bands = next((row.figures.bands for row in report.rows if row.figures.bands), ())
    head = ["", "steps", "NFE", "N", "frechet", "accuracy", "nyquist"]
    lines = [
        [*head, *(band.label for band in bands), "s/image"],
        *(_cells(row, len(bands)) for row in report.rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join(map(str.rjust, line, widths)) for line in lines)
    return "\n".join([*aligned, "", _footnotes(report)])


def _cells(row: Row, bands: int) -> list[str]:
    origin, figures = row.origin, row.figures
    levels = [_cell(band.db, "+.1f") for band in figures.bands] if figures.bands else ["-"] * bands
    return [
        row.role,
        _cell(origin.steps, "d"),
        _cell(origin.nfe, "g"),
        _cell(figures.num, ",d"),
        _cell(figures.frechet, ".4g"),
        _cell(figures.accuracy, ".3f"),
        _cell(figures.nyquist_peak, "+.1f"),
        *levels,
        _cell(origin.seconds_per_image, ".3g"),
    ]


def _cell(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _footnotes(report: Report) -> str:
    notes = [
        f"extractor  {report.extractor}",
        f"real       {report.options.reference}",
        "Frechet distances are biased upwards by about 1 / N: compare at equal N, extractor and reference only.",
        "Bands (cycles per image) and nyquist are dB relative to real images. - is not applicable or not measured.",
    ]
    if report.reference_extractor is None:
        notes.append("WARNING: the reference does not name its extractor; frechet means nothing if it is another one.")
    small = [row.figures.num for row in report.rows if row.figures.num and row.figures.num < report.dim]
    if small:
        notes.append(f"WARNING: N = {min(small)} is below the {report.dim} feature dimensions: frechet is mostly bias.")
    return "\n".join(notes)


def _as_json(row: Row) -> dict[str, Any]:
    return {"role": row.role, **asdict(row.origin), **asdict(row.figures)}
