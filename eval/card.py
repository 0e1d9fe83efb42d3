"""Complete a student's model card: figures of a report, pictures of samples, settings of its run.

  fastgen card runs/mine/student --report report --samples samples
  fastgen card runs/mine/student-lora --report report

An export's README.md has the lines that sample from it. This adds, for the hub and whoever comes by: a table of what
was measured beside the teacher (also as results that the hub reads), pictures with their prompts (also as the hub's
widget), and the settings of the training. It may be run again: what it added before is replaced, all else is kept.
A run's own `config.yaml` and `report` are found beside the student. Several students have a card together, and each
of them its own, as `fastgen card runs/mine/student/0`. `fastgen verify FOLDER --push OWNER/NAME` then uploads the
folder.
"""

import re
import shutil
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fastgen.command import place, positive
from fastgen.disk import check_writable
from fastgen.errors import UserError, say
from fastgen.files import atomic_text
from fastgen.limits import Cap, read_bytes
from fastgen.redaction import plain_markdown, within

from .measures.figure import Figure
from .metrics_json import FILE, Report
from .rows import Bill, Row

README, PICTURES, RECORD, SEVERAL = "README.md", "images", "samples.json", "students.json"
OURS = "<!-- written by fastgen card -->"
SETTINGS = ("student", "process", "sharing", "lora", "stages")
"""Of a run's config: what says how the student came to be, and names no file of this machine."""
ARROWS = {"lower": " ↓", "higher": " ↑", "one": " → 1"}


class Picture(BaseModel):
    """An image in the record of `fastgen sample`."""

    file: str
    seed: int
    flags: tuple[str, ...] = ()
    prompt: str | None = None
    label: int | None = None
    steps: int | None = None

    @property
    def name(self) -> str:
        """The name of its file, which lies beside the record."""
        return Path(self.file).name

    @property
    def asked(self) -> str:
        """What it was asked for by."""
        if self.prompt is not None:
            return self.prompt
        return "-" if self.label is None else f"class {self.label}"


class Samples(BaseModel):
    """The record of `fastgen sample`."""

    images: tuple[Picture, ...]


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen card`."""
    parser.add_argument("folder", type=place, help="an export: of a whole pipeline, of a LoRA, or of several students")
    parser.add_argument("--report", type=place, metavar="DIR", help="folder that `fastgen eval --out` wrote")
    parser.add_argument("--samples", type=place, metavar="DIR", help="folder that `fastgen sample --out` wrote")
    parser.add_argument(
        "--pictures", type=positive, default=8, metavar="N", help="pictures to take from the samples (default: 8)"
    )


def run(args: Namespace) -> None:
    """Write the card anew and say what is in it.

    Raises:
        UserError: no export, report or samples there, or nothing can be written beside the card.
    """
    readme = args.folder / README
    if not readme.is_file():
        raise UserError(f"{args.folder} has no {README}: give the folder that a run exported, such as OUT/student")
    check_writable(args.folder, "the export")
    beside = args.folder.parent / "report"
    folder = args.report or (beside if (beside / FILE).is_file() else None)
    report = Report.read(folder) if folder is not None else None
    pictures = _pictures(args.samples, args.pictures) if args.samples is not None else []
    front, body = _split(readme)
    if report is not None:
        front |= _results(report, str(front.get("pipeline_tag", "text-to-image")), args.folder.name)
    if pictures:
        front["widget"] = _placed(pictures, args.samples, args.folder)
    settings = _run_of(args.folder) / "config.yaml"
    sections = [*_shown_pictures(pictures), *_figures(report), *_settings(settings)]
    text = yaml.safe_dump(within(front), sort_keys=False, allow_unicode=True, width=1000)
    atomic_text(readme, "\n".join([f"---\n{text}---\n{body.rstrip()}\n", OURS, *sections]) + "\n")
    rows = len(_students(report)) if report else 0
    settings_too = "" if settings.is_file() else "no "
    say(f"{readme}: {len(pictures)} pictures, {rows} measured rows, {settings_too}settings")


def _run_of(folder: Path) -> Path:
    """The folder of the run that an export is of; of several students the first one's, of the same settings."""
    around = folder.parent
    if (folder / SEVERAL).is_file():
        return around / "0"
    return around.parent / folder.name.removesuffix("-lora") if (around / SEVERAL).is_file() else around


def _split(readme: Path) -> tuple[dict[str, Any], str]:
    """The front matter, and the text up to what was added before."""
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", _text(readme), re.DOTALL)
    if found is None:
        raise UserError(
            f"{readme} does not begin as a model card, with settings between two lines of ---: take that of the export "
            "again, or write them there"
        )
    return _mapping(found[1], readme), found[2].partition(OURS)[0]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not text in UTF-8 ({error.reason}): save it so") from error


def _mapping(text: str, file: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{file} holds no valid YAML ({' '.join(str(error).split()):.200}): mend it") from error
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no mapping of settings: mend it")
    return found


def _students(report: Report) -> list[Row]:
    return [row for row in report.rows if row.role == "student"]


def _results(report: Report, task: str, name: str) -> dict[str, Any]:
    """The hub's `model-index`: each figure of each row of the student."""
    reference = report.provenance.reference
    dataset = {"type": "custom", "name": Path(reference.path).name if reference else "reference"}
    results = []
    for row in _students(report):
        measured = [
            {"type": figure, "name": f"{report.figures[figure].label}, {row.title}", "value": found.value}
            for figure, found in row.metrics.items()
        ]
        results.append({"task": {"type": task}, "dataset": dataset, "metrics": measured})
    if not any(result["metrics"] for result in results):
        return {}
    return {"metrics": list(report.figures), "model-index": [{"name": name, "results": results}]}


def _figures(report: Report | None) -> Iterator[str]:
    if report is None:
        return
    shown = [row for row in report.rows if row.metrics]
    yield "## Measured\n"
    costs = any(row.costs for row in shown)
    heads = [*(about.label + ARROWS.get(about.better, "") for about in report.figures.values())]
    heads = ["", "NFE", "N", *heads, *(["s/image", "images/s", "at once"] if costs else [])]
    yield "| " + " | ".join(map(plain_markdown, heads)) + " |"
    yield "|" + "---|" * len(heads)
    for row in shown:
        cells = [row.title, _number(row.nfe), _number(row.num)]
        cells += [_figure(row.metrics.get(name)) for name in report.figures]
        if costs:
            cells += _costs(row.costs)
        yield "| " + " | ".join(map(plain_markdown, cells)) + " |"
    yield f"\nProtocol: {plain_markdown(report.protocol.name)}, {plain_markdown(report.protocol.extractor)}. "
    yield "Figures of other protocols or other numbers of images are not comparable.\n"


def _costs(bill: Bill | None) -> list[str]:
    if bill is None:
        return ["-"] * 3
    return [_number(bill.seconds_per_image), _number(bill.images_per_second), str(bill.batch_size)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _figure(figure: Figure | None) -> str:
    if figure is None:
        return "-"
    return f"{figure.value:.4g}" + (f" ± {figure.high - figure.value:.2g}" if figure.high is not None else "")


def _pictures(samples: Path, most: int) -> list[Picture]:
    """The first pictures of a folder of samples that no checker flagged."""
    file = samples / RECORD
    if not file.is_file():
        raise UserError(f"{samples} has no {RECORD}: give the folder that `fastgen sample --out` wrote")
    try:
        record = Samples.model_validate_json(read_bytes(file, Cap.JSON))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{file} cannot be read ({where}: {first['msg']}): sample again") from error
    found = [picture for picture in record.images if not picture.flags][:most]
    for picture in found:
        if not (samples / picture.name).is_file():
            raise UserError(f"{file} names {picture.name}, which is not beside it: sample again")
    return found


def _placed(pictures: list[Picture], samples: Path, folder: Path) -> list[dict[str, Any]]:
    """Copies the pictures into the export; the hub's widget of them."""
    (folder / PICTURES).mkdir(exist_ok=True)
    for picture in pictures:
        shutil.copyfile(samples / picture.name, folder / PICTURES / picture.name)
    return [{"text": one.asked, "output": {"url": f"{PICTURES}/{one.name}"}} for one in pictures]


def _shown_pictures(pictures: list[Picture]) -> Iterator[str]:
    if pictures:
        yield "## Samples\n"
        yield "<Gallery />\n"
        yield "| picture | asked for | seed | steps |\n|---|---|---|---|"
        for one in pictures:
            yield f"| ![]({PICTURES}/{one.name}) | {plain_markdown(one.asked)} | {one.seed} | {one.steps or '-'} |"
        yield ""


def _settings(file: Path) -> Iterator[str]:
    if file.is_file():
        config = _mapping(_text(file), file)
        kept = within({name: config[name] for name in SETTINGS if name in config})
        text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110).replace("```", "'''")
        yield f"## Settings of its training\n\n```yaml\n{text}```\n"
