"""A report as a table for the terminal, with what its figures may be compared with."""

from collections.abc import Iterator

from ..measures.figure import Figure
from ..metrics_json import Report, Verdict
from ..options import Options
from ..rows import Row
from . import flagged


def table(report: Report, options: Options) -> str:
    """The rows side by side, the spectrum's bands, and what the figures may be compared with."""
    names = tuple(report.figures)
    bands = next((row.spectrum.bands for row in report.rows if row.spectrum and row.spectrum.bands), ())
    head = [
        "",
        "NFE",
        "N",
        *(about.label for about in report.figures.values()),
        *(band.label for band in bands),
        "s/image",
    ]
    rows = [line for row in report.rows for line in (_cells(row, names, len(bands)), *_blocks(row, names, len(bands)))]
    lines = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines)
    return "\n".join([*aligned, "", _footnotes(report, options)])


def _cells(row: Row, names: tuple[str, ...], bands: int) -> list[str]:
    figures = [row.metrics.get(name) for name in names]
    levels = row.spectrum.bands if row.spectrum else ()
    return [
        row.title,
        _cell(row.nfe, "g"),
        _cell(row.num, ",d"),
        *(_cell(figure.value if figure else None, ".4g") + _scatter(figure) for figure in figures),
        *([_cell(band.db, "+.1f") for band in levels] or ["-"] * bands),
        _cell(row.costs.seconds_per_image if row.costs else None, ".3g"),
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
    found = [row.metrics.get(name) for name in names]
    count = max((len(figure.values) for figure in found if figure), default=0)
    first, num = row.source.first_seed or 0, row.num or 0
    return [
        [
            f"  from seed {first + block * num}",
            *["", ""],
            *(_cell(figure.values[block] if figure else None, ".4g") for figure in found),
            *[""] * (bands + 1),
        ]
        for block in range(count)
    ]


def _footnotes(report: Report, options: Options) -> str:
    protocol = report.protocol
    notes = [
        f"protocol   {protocol.extractor}; {protocol.dim} dimensions",
        f"real       {report.provenance.reference.path}",
        f"seeds      {_seeds(options)}, pipelines in {options.dtype}",
        "A Frechet distance is biased upwards by about 1 / N, which no interval shows: compare at equal N and protocol "
        "only.",
        "- does not apply or was not measured.",
    ]
    if any(row.spectrum for row in report.rows):
        notes[-1] = f"Bands (cycles per image) and nyquist are dB relative to real images. {notes[-1]}"
    if protocol.reference_extractor is None:
        notes.append("WARNING: the reference does not name its extractor; FID means nothing if it is another one.")
    small = [row.num for row in report.rows if row.num is not None and row.num < protocol.min_images]
    if small:
        notes.append(f"WARNING: N = {min(small)} is below {protocol.min_images:,}: FID is mostly bias.")
    notes += [f"no {name}{whose}: {reason}." for name, whose, reason in _missing(report)]
    notes += [f"skipped {len(row.skipped)} images of {row.source.path}." for row in report.rows if row.skipped]
    notes += [f"WARNING: {flagged.in_words(row, skipped=options.skip_flagged)}" for row in report.rows if row.flagged]
    return "\n".join([*notes, *map(_verdict, report.assertions)])


def _missing(report: Report) -> Iterator[tuple[str, str, str]]:
    """Figures that a row lacks, whose row where others have it, and why; real images that lack one are no news."""
    found = set(report.figures)
    reasons = {
        (name, f" of {row.title}" if name in found else ""): reason
        for row in report.rows
        for name, reason in row.not_measured.items()
        if row.role != "real" or name not in found
    }
    yield from ((name, whose, reason) for (name, whose), reason in reasons.items())


def _verdict(verdict: Verdict) -> str:
    found = ", ".join(
        f"{one.row}: {'not measured' if one.value is None else f'{one.value:.6g}'}" for one in verdict.measured
    )
    return f"{'holds ' if verdict.holds else 'FAILS '} {verdict.text}   ({found or 'no such student row'})"


def _seeds(options: Options) -> str:
    last = options.seed + options.seeds * options.num - 1
    blocks = f" in {options.seeds} blocks, sd over blocks" if options.seeds > 1 else ""
    return f"{options.seed} to {last}{blocks}"
