"""Pages of results: prose that people write around tables and curves that are made of the records in `results/runs/`.

A page has `<!-- table: NAME -->` or `<!-- curves: NAME -->`, then what is written here, then `<!-- end -->`. NAME is a
folder of records, such as `python -m benchmarks.trials` leaves; what a record does not say is a dash.
"""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

from results_curves import drawn

from benchmarks.trials.record import Record, Row

RESULTS = Path(__file__).parent / "results"
RUNS = RESULTS / "runs"
UNKNOWN = "-"

FIGURES = {
    "fid": "Frechet",
    "clip_score": "CLIP score",
    "accuracy": "accuracy",
    "share": "in the style",
    "kept_share": "other styles kept",
    "diversity": "diversity",
    "variety.diversity": "diversity",
    "diversity_ratio": "diversity to the teacher's",
    "saturation_ratio": "saturation",
    "recall": "recall",
    "trained.clip_score": "reward: trained half",
    "other.clip_score": "reward: other half",
    "judge_trained.clip_score": "judge: trained half",
    "judge_other.clip_score": "judge: other half",
    "unseen.fid": "unseen: Frechet",
    "unseen.clip_score": "unseen: CLIP score",
    "spectrum_gap": "band gap",
    "nyquist_peak": "Nyquist",
    "dB 1-4": "1-4",
    "dB 4-8": "4-8",
    "dB 8-12": "8-12",
    "dB 12-16": "12-16",
    "dB 16-23": "16-23",
}
"""Columns by the names of figures; a table has those of which a record of its has one."""

_BLOCK = re.compile(r"(<!-- (table|curves): ([\w.-]+) -->\n).*?(<!-- end -->)", re.S)


def results() -> dict[Path, str]:
    """Every page of results and picture of curves, and its text."""
    found = {}
    for page in sorted(RESULTS.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        found[page] = _BLOCK.sub(_filled, text)
        curves = [name for _, kind, name, _ in _BLOCK.findall(text) if kind == "curves"]
        found |= {RESULTS / f"{name}.svg": drawn(records(name)) for name in curves if _courses(name)}
    return found


def records(name: str) -> list[Record]:
    """A table's records: teachers first, then the nearest to the real images, those that failed last."""
    found = [Record.read(file) for file in sorted((RUNS / name).glob("*.json"))]
    return sorted(found, key=lambda one: (one.role != "teacher", one.failed is not None, _nearest(one)))


def table(name: str) -> str:
    """The rows of all records, with where each is from."""
    found = records(name)
    if not found:
        return "No run of this table has been recorded yet.\n"
    there = {figure for record in found for row in record.rows for figure in row.figures}
    columns = [figure for figure in FIGURES if figure in there]
    heads = ["run", "steps", "NFE", *(FIGURES[figure] for figure in columns), "updates", "minutes", "seconds", "seed"]
    heads += ["config", "commit", "card"]
    lines = [heads, ["---"] * len(heads)]
    lines += [_cells(record, row, columns) for record in found for row in record.rows]
    lines += [_failed(record, len(columns)) for record in found if record.failed]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(record: Record, row: Row, columns: list[str]) -> list[str]:
    figures = [_shown(row.figures.get(figure)) for figure in columns]
    return [_title(record), str(row.steps), _shown(row.nfe), *figures, *_origin(record)]


def _failed(record: Record, figures: int) -> list[str]:
    said = f"left no student: {record.failed}".replace("|", "/")
    return [_title(record), UNKNOWN, UNKNOWN, *([said] + [UNKNOWN] * figures)[:figures], *_origin(record)]


def _title(record: Record) -> str:
    settings = [f"`{setting}`" for setting in record.settings if len(setting) < 80]
    return ", ".join(filter(None, [f"`{record.name}`", *settings, record.note]))


def _origin(record: Record) -> list[str]:
    counted, unit = (record.updates, "") if record.updates else (record.images, "images of ")
    updates = " + ".join(f"{count:,} {unit}{stage}" for stage, count in counted.items())
    card = record.card or UNKNOWN
    if record.at_once is not None and record.at_once > 1:
        card += f", {record.at_once} runs at once"
    budget, seconds = (_shown(value) for value in (record.minutes, record.seconds))
    config = UNKNOWN if record.config is None else f"`{record.config}`"
    return [updates or UNKNOWN, budget, seconds, _shown(record.seed), config, record.commit or UNKNOWN, card]


def _shown(value: Decimal | int | None) -> str:
    return UNKNOWN if value is None else str(value)


def _nearest(record: Record) -> Decimal:
    return min((row.figures["fid"] for row in record.rows if "fid" in row.figures), default=Decimal("inf"))


def _courses(name: str) -> bool:
    return any(len(record.curve) > 1 for record in records(name))


def _filled(block: re.Match[str]) -> str:
    start, kind, name, end = block.groups()
    return f"{start}{''.join(_inside(kind, name))}{end}"


def _inside(kind: str, name: str) -> Iterator[str]:
    if kind == "table":
        yield f"\n{table(name)}\n"
    elif _courses(name):
        yield f"\n![Frechet distance against seconds of training]({name}.svg)\n\n"
    else:
        yield "\nNo run with measurements on its way has been recorded yet.\n\n"
