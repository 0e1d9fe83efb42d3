"""The report: one row per image set, as JSON (docs/metrics.md) and as a table for the terminal."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastgen.files import atomic_json

from ..images import flagged
from ..images.costs import Bill
from ..images.decode import Flagged, Skipped
from ..images.sources import Origin, Role
from ..measures.classes import ClassRow
from ..measures.figure import Figure
from ..measures.spectrum import Band
from ..metrics import about, in_order
from ..options import Options
from .assertions import Assertion, Verdict

FILE = "metrics.json"
FORMAT = 2


@dataclass(frozen=True)
class Levels:
    """The power spectrum of a row.

    Attributes:
        side: of the images in pixels, the shorter one; Nyquist is at half as many cycles.
        bands: against the real images; empty for these.
        radial: power at 1, 2 ... cycles per image.
    """

    side: int
    bands: tuple[Band, ...]
    radial: tuple[float, ...]


@dataclass(frozen=True)
class Row:
    """One image set of the report."""

    id: str
    role: Role
    title: str
    origin: Origin
    num: int | None
    figures: Mapping[str, Figure]
    not_measured: Mapping[str, str]
    skipped: tuple[Skipped, ...] = ()
    flagged: tuple[Flagged, ...] = ()
    bill: Bill | None = None
    levels: Levels | None = None
    per_class: tuple[ClassRow, ...] | None = None


@dataclass(frozen=True)
class ProtocolNote:
    """What all rows were measured by."""

    name: str
    extractor: str
    dim: int
    resizes: bool
    precision: str
    min_images: int
    reference_extractor: str | None
    classes: tuple[str, ...]
    clip: str | None


@dataclass(frozen=True)
class Report:
    """Rows that were measured by one protocol."""

    options: Options
    protocol: ProtocolNote
    rows: tuple[Row, ...]
    gallery: Mapping[str, Any] | None
    provenance: Mapping[str, Any]

    @property
    def figure_names(self) -> tuple[str, ...]:
        """Of any row, in the order of the table of metrics; others, such as rewards, behind them."""
        return in_order(name for row in self.rows for name in row.figures)

    def verdicts(self) -> tuple[Verdict, ...]:
        """What --assert says of the student's rows."""
        return tuple(
            Verdict(
                assertion,
                tuple(
                    (row.id, _value(row, assertion.name))
                    for row in self.rows
                    if row.role == "student" and assertion.applies(row.origin.steps)
                ),
            )
            for assertion in map(Assertion.parse, self.options.assertions)
        )


def write(report: Report, folder: Path) -> None:
    """Writes metrics.json, whole or not at all."""
    atomic_json(folder / FILE, as_json(report))


def as_json(report: Report) -> dict[str, Any]:
    """See docs/metrics.md."""
    return {
        "format": FORMAT,
        "protocol": asdict(report.protocol),
        "figures": {name: asdict(about(name)) for name in report.figure_names},
        "rows": [row_json(row) for row in report.rows],
        "gallery": report.gallery,
        "assertions": [
            {
                "text": verdict.assertion.text,
                "holds": verdict.holds,
                "measured": [{"row": row, "value": value} for row, value in verdict.measured],
            }
            for verdict in report.verdicts()
        ],
        "provenance": report.provenance,
    }


def table(report: Report) -> str:
    """The rows side by side, the spectrum's bands, and what the figures may be compared with."""
    names = report.figure_names
    bands = next((row.levels.bands for row in report.rows if row.levels and row.levels.bands), ())
    head = ["", "NFE", "N", *(about(name).label for name in names), *(band.label for band in bands), "s/image"]
    rows = [line for row in report.rows for line in (_cells(row, names, len(bands)), *_blocks(row, names, len(bands)))]
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
    return "\n".join([*aligned, "", _footnotes(report)])


def _cells(row: Row, names: tuple[str, ...], bands: int) -> list[str]:
    figures = [row.figures.get(name) for name in names]
    levels = row.levels.bands if row.levels else ()
    return [
        row.title,
        _cell(row.bill.nfe if row.bill else None, "g"),
        _cell(row.num, ",d"),
        *(_cell(figure.value if figure else None, ".4g") + _scatter(figure) for figure in figures),
        *([_cell(band.db, "+.1f") for band in levels] or ["-"] * bands),
        _cell(row.bill.seconds_per_image if row.bill else None, ".3g"),
    ]


def _cell(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _scatter(figure: Figure | None) -> str:
    """Standard deviation over blocks of seeds, or half the width of the interval."""
    if figure is not None and figure.spread is not None:
        return f" sd {figure.spread:.2g}"
    return "" if figure is None or figure.high is None else f" ±{figure.high - figure.value:.2g}"


def _blocks(row: Row, names: tuple[str, ...], bands: int) -> list[list[str]]:
    """A line for each block of seeds, if there are several."""
    found = [row.figures.get(name) for name in names]
    count = max((len(figure.values) for figure in found if figure), default=0)
    first, num = row.origin.first_seed or 0, row.num or 0
    return [
        [
            f"  from seed {first + block * num}",
            *["", ""],
            *(_cell(figure.values[block] if figure else None, ".4g") for figure in found),
            *[""] * (bands + 1),
        ]
        for block in range(count)
    ]


def _footnotes(report: Report) -> str:
    protocol, options = report.protocol, report.options
    notes = [
        f"protocol   {protocol.extractor}; {protocol.dim} dimensions",
        f"real       {options.reference}",
        f"seeds      {_seeds(options)}, pipelines in {options.dtype}",
        "FID is biased upwards by about 1 / N, which its interval does not show: compare at equal N and protocol only.",
        "Bands (cycles per image) and nyquist are dB relative to real images. - does not apply or was not measured.",
    ]
    if protocol.reference_extractor is None:
        notes.append("WARNING: the reference does not name its extractor; FID means nothing if it is another one.")
    small = [row.num for row in report.rows if row.num is not None and row.num < protocol.min_images]
    if small:
        notes.append(f"WARNING: N = {min(small)} is below {protocol.min_images:,}: FID is mostly bias.")
    notes += [f"no {name}{whose}: {reason}." for name, whose, reason in _missing(report)]
    notes += [f"skipped {len(row.skipped)} images of {row.origin.path}." for row in report.rows if row.skipped]
    notes += [
        f"WARNING: {flagged.told(row_json(row), skipped=options.skip_flagged)}" for row in report.rows if row.flagged
    ]
    return "\n".join([*notes, *(verdict.line() for verdict in report.verdicts())])


def _missing(report: Report) -> Iterator[tuple[str, str, str]]:
    """Figures that a row lacks, whose row where others have it, and why; real images that lack one are no news."""
    found = set(report.figure_names)
    reasons = {
        (name, f" of {row.title}" if name in found else ""): reason
        for row in report.rows
        for name, reason in row.not_measured.items()
        if row.role != "real" or name not in found
    }
    yield from ((name, whose, reason) for (name, whose), reason in reasons.items())


def _seeds(options: Options) -> str:
    last = options.seed + options.seeds * options.num - 1
    blocks = f" in {options.seeds} blocks, sd over blocks" if options.seeds > 1 else ""
    return f"{options.seed} to {last}{blocks}"


def row_json(row: Row) -> dict[str, Any]:
    """A row as docs/metrics.md says."""
    origin, levels = row.origin, row.levels
    return {
        "id": row.id,
        "role": row.role,
        "title": row.title,
        "source": {name: value for name, value in asdict(origin).items() if name != "steps"},
        "num": row.num,
        "skipped": [asdict(skip) for skip in row.skipped],
        "flagged": [asdict(one) for one in row.flagged],
        "steps": origin.steps,
        "nfe": row.bill.nfe if row.bill else None,
        "metrics": {name: asdict(figure) for name, figure in row.figures.items()},
        "not_measured": dict(row.not_measured),
        "costs": asdict(row.bill) if row.bill else None,
        "spectrum": None if levels is None else _levels(levels),
        "per_class": None if row.per_class is None else [asdict(one) for one in row.per_class],
    }


def _levels(levels: Levels) -> dict[str, Any]:
    radial = [{"cycles": cycles, "power": power} for cycles, power in enumerate(levels.radial, start=1)]
    return {"side": levels.side, "bands": [asdict(band) for band in levels.bands], "radial": radial}


def _value(row: Row, name: str) -> float | None:
    """A figure of a row, or one of its costs, by name."""
    if name in row.figures:
        return row.figures[name].value
    costs: dict[str, float | None] = asdict(row.bill) if row.bill else {}
    return costs.get(name)
