"""What is kept of a trial: a small JSON file, which a page of results is made of and says where it is from."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from eval.metrics_json import Report
from fastgen.config.schema import Config
from fastgen.files import atomic_text

DIGITS = 4
"""Significant ones that are kept of a figure."""


class Row(BaseModel):
    """Figures of one number of steps by their names in metrics.json; those of a further report have its name first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int
    nfe: Decimal | None = None
    figures: dict[str, Decimal]


class Point(BaseModel):
    """A quick measurement while it trained: seconds of training and images of the generator, over all stages."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: Decimal
    images: int
    fid: Decimal


class Record(BaseModel):
    """A trial: what was run, where, and what came out; null where that is not known.

    name: of the trial, and of its file.
    role: who is measured.
    config: under configs/, without ending; null for a teacher, which is not trained.
    settings: overrides of the config beside places of data, as they were given.
    note: what a reader should know besides.
    minutes: budget of training.
    seconds: that training took from its command to its export, and those in its cycles alone.
    at_once: runs that shared the card.
    updates, images: of the generator, by stage.
    failed: how the run ended if it left no student.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: str = "student"
    config: str | None
    settings: tuple[str, ...] = ()
    note: str = ""
    commit: str | None
    seed: int | None
    card: str | None
    at_once: int | None
    versions: dict[str, str] = Field(default_factory=dict)
    minutes: Decimal | None = None
    seconds: Decimal | None = None
    cycles_seconds: Decimal | None = None
    updates: dict[str, int] = Field(default_factory=dict)
    images: dict[str, int] = Field(default_factory=dict)
    rows: tuple[Row, ...] = ()
    curve: tuple[Point, ...] = ()
    failed: str | None = None

    @classmethod
    def read(cls, file: Path) -> Self:
        """Numbers keep the digits that the file has, and get no others."""
        return cls.model_validate(json.loads(file.read_text(encoding="utf-8"), parse_float=Decimal))

    def write(self, file: Path) -> None:
        """Writes the file, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_text(file, json.dumps(self.model_dump(), indent=1, default=float) + "\n")


def rounded(value: float) -> Decimal:
    """A number with the digits that are kept."""
    return Decimal(f"{value:.{DIGITS}g}")


def rows_of(reports: dict[str, Path]) -> tuple[Row, ...]:
    """The student's rows of several reports, side by side; the first report's figures keep their plain names."""
    found: dict[int, dict[str, Decimal]] = {}
    nfe: dict[int, Decimal | None] = {}
    for place, (name, folder) in enumerate(reports.items()):
        for row in Report.read(folder).rows:
            if row.role != "student" or row.steps is None:
                continue
            values = {metric: figure.value for metric, figure in row.metrics.items()}
            values |= {f"dB {band.label}": band.db for band in (row.spectrum.bands if row.spectrum else ())}
            values |= {"seconds_per_image": row.costs.seconds_per_image} if row.costs else {}
            prefix = f"{name}." if place else ""
            figures = found.setdefault(row.steps, {})
            figures |= {f"{prefix}{key}": rounded(value) for key, value in values.items()}
            nfe.setdefault(row.steps, None if row.nfe is None else rounded(row.nfe))
    return tuple(Row(steps=steps, nfe=nfe[steps], figures=figures) for steps, figures in sorted(found.items()))


def course_of(run: Path, config: Config) -> dict[str, Any]:
    """Updates, seconds in cycles and the quick measurements of a run's folder.

    The seconds of a measurement are its stage's in proportion to the images seen by then.
    """
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    updates, curve, seconds, images = {}, [], 0.0, {}
    for index, stage in enumerate(config.stages):
        mine = [line for line in lines if line["stage"] == index]
        about = json.loads((run / "stages" / stage.name / "about.json").read_text(encoding="utf-8"))
        updates[stage.name] = max((line["cycle"] for line in mine), default=0)
        curve += list(_points(mine, about["seconds"] / max(about["images"], 1), seconds, sum(images.values())))
        seconds, images[stage.name] = seconds + about["seconds"], about["images"]
    return {"updates": updates, "images": images, "cycles_seconds": rounded(seconds), "curve": tuple(curve)}


def _points(lines: list[dict[str, Any]], pace: float, seconds: float, images: int) -> Iterator[Point]:
    for line in lines:
        if line.get("quality/fid") is not None:
            spent = seconds + pace * line["images"]
            yield Point(seconds=rounded(spent), images=images + line["images"], fid=rounded(line["quality/fid"]))
