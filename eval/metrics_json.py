"""metrics.json: what a report says, written and read by the same classes. The page and docs/metrics.md come from here.

Imports no torch, so that a report is read as fast as any other file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from fastgen.errors import UserError
from fastgen.files import atomic_json

from .rows import PART, Kind, Row

FILE = "metrics.json"
FORMAT: Literal[2] = 2

Better = Literal["lower", "higher", "one", "zero"]


@dataclass(frozen=True, config=PART)
class About:
    """What a figure is, for readers of a report."""

    label: str
    """Short name for the head of a column, such as "FID"."""
    better: Better
    """`one` and `zero`: best near 1 and near 0."""
    unit: str = ""
    """Such as "dB"; empty for a pure number."""
    paper: str = ""
    """Authors, year, arXiv."""
    interval: str = ""
    """What `low` and `high` are; empty where there are none."""


@dataclass(frozen=True, config=PART)
class Protocol:
    """What all rows were measured by: numbers of two protocols never stand in one file."""

    name: str
    """`clean`, `edm`, `adm`, `domain`, `dinov2`, `clip`, `digits`."""
    extractor: str
    """Network, hash of its weights, resize and feature in words; figures are comparable exactly where it is equal."""
    dim: int
    """Dimensions of a feature."""
    resizes: bool
    """Whether images of any size become one size."""
    precision: str
    """`float32`, or `tf32` with `--fast`."""
    min_images: int
    """Images below which the protocol refuses without `--allow-small`."""
    reference_extractor: str | None
    """Named by a statistics file; null: a foreign file that does not say."""
    classes: tuple[str, ...]
    """Names of the extractor's classes; empty without a classifier."""
    clip: str | None
    """Identity of the text and image model of `clip_score` and `cmmd`."""


@dataclass(frozen=True, config=PART, kw_only=True)
class Subject:
    """What a picture was asked to show; null where it does not apply."""

    label: Annotated[int | None, Field(description="A class by its number.")] = None
    class_name: Annotated[str | None, Field(description="Where the extractor has names for classes.")] = None
    prompt: Annotated[str | None, Field(description="A text as the pipeline got it.")] = None


@dataclass(frozen=True, config=PART, kw_only=True)
class Item(Subject):
    """What picture k of every row was asked to show."""

    seed: int
    """Seed of the image; rows of files show their first images instead."""


@dataclass(frozen=True, config=PART, kw_only=True)
class Strip(Subject):
    """One label or prompt, many seeds."""

    seeds: tuple[int, ...]
    """Seeds of the images."""
    images: Mapping[str, tuple[str, ...]]
    """Files by row: `images/<row id>/strip-<seed>.png`."""


@dataclass(frozen=True, config=PART)
class Near:
    """A real image near a picture."""

    index: int
    """Its number in the reference's order, skipped images left out."""
    distance: float
    """Distance between the features of the two."""
    image: str
    """`images/real/neighbour-<index>.png`."""


@dataclass(frozen=True, config=PART)
class Gallery:
    """The same seeds, and labels or prompts, for every row; rows that are image files show their first images."""

    items: tuple[Item, ...]
    """What every row was asked for, picture by picture."""
    images: Mapping[str, tuple[str | None, ...]]
    """By row: `images/<row id>/<seed>.png`, one per item, null for one that `--skip-bad` left out; rows without
    pictures (statistics) are absent."""
    strip: Strip | None
    """null where no pipeline was drawn."""
    neighbours: Mapping[str, tuple[tuple[Near, ...], ...]]
    """By generated row and item: its nearest real images by feature distance, nearest first."""


@dataclass(frozen=True, config=PART)
class Measured:
    """What an assertion found in a row."""

    row: str
    """Id of the row."""
    value: float | None
    """null where it was not measured."""


@dataclass(frozen=True, config=PART)
class Verdict:
    """An assertion of `--assert`, such as `fid[4] < 5`, beside what was measured."""

    text: str
    """The assertion as it was given."""
    holds: bool
    """Whether it holds for every row that it speaks of; not where there is none, or a value is null."""
    measured: tuple[Measured, ...]
    """One entry for each row that it speaks of."""


@dataclass(frozen=True, config=PART)
class RealImages:
    """The reference."""

    path: str
    """Its path or hub id as it was given."""
    kind: Kind
    """`images`, or `statistics` of their features."""
    num: int | None
    """Images; null: a statistics file that does not say."""
    skipped: int
    """Images left out by `--skip-bad`."""


@dataclass(frozen=True, config=PART)
class LineFile:
    """A file with one prompt or label per line."""

    path: str
    """Its path as it was given."""
    sha256: str
    """SHA-256 of its content, 64 hexadecimal digits."""
    count: int
    """Lines."""


@dataclass(frozen=True, config=PART, kw_only=True)
class Provenance:
    """Where the figures come from: files, seeds, machine, versions and settings."""

    reference: RealImages
    """What all other rows are compared with."""
    seeds: tuple[int, int] | None
    """First and last of all generated images, both inclusive."""
    prompts: LineFile | None
    """The file of `--prompts`; null without."""
    labels: LineFile | None
    """The file of `--labels`; null without."""
    processes: int
    """Number of processes that shared the work."""
    settings: Mapping[str, Any]
    """Every option of the command line by its name."""
    device: str
    """The device in words."""
    versions: Mapping[str, str]
    """Versions by package."""
    command: str
    """The command that made the file."""
    started: str
    """ISO 8601, UTC."""
    seconds: float
    """Duration of the whole evaluation."""


@dataclass(frozen=True, config=PART)
class Series:
    """A figure of a run while it trained."""

    name: str
    """Such as `generator/dm`, `fake_score/grad` or `quality/frechet`."""
    points: tuple[tuple[float, float], ...]
    """Images of the run seen by then, and the value; of a long run means of neighbours."""


@dataclass(frozen=True, config=PART)
class Training:
    """The run that left the student, where its log lies beside the student or the report."""

    path: str
    """Folder of the run."""
    stages: tuple[float, ...]
    """Images at which a stage ended and the next one began."""
    series: tuple[Series, ...]
    """Series in the order in which they first appear."""


class Report(BaseModel):
    """Rows that were measured by one protocol, and what a reader needs to know of them."""

    model_config = ConfigDict(frozen=True, **PART)

    format: Literal[2] = FORMAT
    """A reader refuses any other."""
    protocol: Protocol
    """What all rows were measured by."""
    figures: Mapping[str, About]
    """What every number in a row's `metrics` means, in the order of a table's columns; a name in no row is absent."""
    rows: tuple[Row, ...]
    """Rows in the order of the table: real, held-out, teachers, students."""
    gallery: Gallery | None
    """What the image files show."""
    assertions: tuple[Verdict, ...] = ()
    """Verdicts on `--assert`, in its order."""
    provenance: Provenance
    """Where the figures come from."""
    training: Training | None = None
    """Curves of the run that left the student; null where it is not known."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The report of a folder, also of one that an earlier version wrote in this format.

        Raises:
            UserError: metrics.json is missing, is not JSON, or has another format.
        """
        file = folder / FILE
        if not file.is_file():
            raise UserError(f"{file} does not exist; give the folder that python -m eval --out wrote")
        try:
            return cls.model_validate_json(file.read_bytes(), strict=True)
        except ValidationError as error:
            raise UserError(
                f"{file} is no report of format {FORMAT}: {_first(error)}; write it again with python -m eval of this "
                "version"
            ) from error

    def write(self, folder: Path) -> None:
        """Writes metrics.json, whole or not at all."""
        atomic_json(folder / FILE, self.model_dump(mode="json"))


def _first(error: ValidationError) -> str:
    """Where the file is wrong first, what should stand there, and what does."""
    one = error.errors(include_url=False, include_context=False)[0]
    found = f", not {one['input']!r}" if isinstance(one["input"], int | float | str | None) else ""
    return f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}{found[:200]}"
