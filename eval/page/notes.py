"""What a reader must know before believing a figure."""

from collections.abc import Iterator

from ..metrics_json import Report
from ..report import flagged


def warnings(report: Report) -> Iterator[str]:
    """Reasons to distrust the figures, if there are any."""
    yield from _of_numbers(report)
    yield from _of_extractors(report)
    for row in report.rows:
        if row.flagged:
            yield flagged.in_words(row, skipped=bool(report.provenance.settings.get("skip_flagged")))
        if row.skipped:
            yield f"{row.title}: images left out: {len(row.skipped):,}; they are named under provenance."


def _of_numbers(report: Report) -> Iterator[str]:
    least, rows = report.protocol.min_images, report.rows
    small = sorted({row.num for row in rows if row.num is not None and row.num < least})
    if small:
        yield (
            f"N = {', '.join(f'{num:,}' for num in small)} is below {least:,}: FID is mostly bias at "
            "such an N, which its interval does not show."
        )
    if len({row.num for row in rows if row.role != "real"}) > 1:
        yield "Generated rows differ in N; FID falls as N grows, so compare only rows of equal N."
    if len({row.source.first_seed for row in rows if row.source.kind == "pipeline"}) > 1:
        yield "Rows start at different seeds; pictures side by side are not of one seed."


def _of_extractors(report: Report) -> Iterator[str]:
    protocol = report.protocol
    if protocol.reference_extractor is None:
        yield "The reference does not name its extractor; FID means nothing if it is another one."
    elif protocol.reference_extractor != protocol.extractor:
        yield f"The reference was measured by another extractor: {protocol.reference_extractor}."
    if protocol.precision != "float32":
        yield f"Features were computed in {protocol.precision}; do not compare them with float32 figures."
