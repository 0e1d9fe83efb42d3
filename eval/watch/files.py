"""What a run has left on disk so far, read again whenever it is asked for.

Everything here may be damaged, torn or written by someone else: what cannot be read is left out, and nothing is trusted
to be more than text and numbers.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from fastgen.errors import UserError
from fastgen.lock import Holder, holder_of

from ..page.pictures import LARGEST, Picture, embedded

State = Literal["running", "finished", "stopped"]
ABOUT, LOG, PACE, CONFIG, LOCK = "run.json", "log.jsonl", "pace.jsonl", "config.yaml", ".lock"
PREVIEWS, BELIEFS, TEACHER = "previews", "beliefs", "teacher"
FIRST = "0"
"""Of several students, the folder of the first one's run."""
GAP = 2
"""Pixels between the pictures of a grid."""
MOST_PICTURES = 64
"""Pictures of a grid that are read."""
MOST_PIXELS = 64_000_000
"""Of a grid that is opened."""


@dataclass(frozen=True)
class Entry:
    """A line of a log: where it stands, its finite numbers by name, and what is said in it."""

    stage: int
    cycle: int
    images: float | None
    figures: Mapping[str, float]
    said: str


@dataclass(frozen=True)
class Preview:
    """A grid of pictures of seeds that are always the same."""

    name: str
    what: str
    stage: str
    images: int | None
    captions: tuple[str, ...]
    pictures: tuple[Picture, ...]
    health: Mapping[str, float]
    beliefs: Picture | None


@dataclass(frozen=True)
class RunFiles:
    """A run's folder.

    Attributes:
        about: what the run says of itself: header, closing, next.
        log, pace: lines of its two logs.
        holder: who is writing it, if anyone is.
    """

    folder: Path
    about: Mapping[str, Any]
    log: tuple[Entry, ...]
    pace: tuple[Entry, ...]
    holder: Holder | None

    @classmethod
    def read(cls, folder: Path) -> "RunFiles":
        """A run as it stands.

        Raises:
            UserError: the folder holds none.
        """
        if not _holds_run(folder):
            if _holds_run(folder / FIRST):
                raise UserError(f"{folder} holds the runs of several students: give one of them, as {folder / FIRST}")
            raise UserError(
                f"{folder} is not the folder of a run: it has neither {LOG} nor {CONFIG}. Give the `out` of a config, "
                "such as runs/digits/dmd2_1step"
            )
        about = _object(folder / ABOUT)
        return cls(
            folder, about, tuple(_entries(folder / LOG)), tuple(_entries(folder / PACE)), holder_of(folder / LOCK)
        )

    @property
    def state(self) -> State:
        if self.holder is not None:
            return "running"
        return "finished" if self.about.get("finished") else "stopped"

    @property
    def version(self) -> str:
        """Changes whenever a file does."""
        stamps = [_stamp(self.folder / name) for name in (ABOUT, LOG, PACE, LOCK, PREVIEWS)]
        return f"{hash((self.state, *stamps)):x}"

    def told(self, part: str) -> dict[str, str]:
        """Headings and lines that the run says of itself."""
        lines = self.about.get(part)
        return {str(name): str(line) for name, line in lines.items()} if isinstance(lines, dict) else {}

    @property
    def commands(self) -> tuple[str, ...]:
        """What is next, in the run's own words."""
        found = self.about.get("next")
        return tuple(map(str, found)) if isinstance(found, list) else ()

    @property
    def stages(self) -> tuple[str, ...]:
        """Headings of the stages, in their order."""
        return tuple(name for name in self.told("header") if name.startswith("stage "))

    def previews(self, most: int) -> Iterator[Preview]:
        """The latest pictures of the generator, the oldest first."""
        names = sorted(path.stem for path in (self.folder / PREVIEWS).glob("[0-9]*.json"))
        for name in names[-most:]:
            if (found := self._preview(name)) is not None:
                yield found

    @property
    def teacher(self) -> Preview | None:
        """The teacher's pictures of the same seeds."""
        return self._preview(TEACHER)

    def _preview(self, name: str) -> Preview | None:
        record = _object(self.folder / PREVIEWS / f"{name}.json")
        found = [record.get(key) for key in ("columns", "width", "height")]
        size = [value for value in found if isinstance(value, int) and value > 0]
        captions = record.get("captions")
        if len(size) < len(found) or not isinstance(captions, list):
            return None
        captions, what = [str(caption) for caption in captions[:MOST_PICTURES]], str(record.get("what", name))
        grid = _opened(self.folder / PREVIEWS / f"{name}.png")
        images, health = record.get("images"), record.get("health")
        believed = (self.folder / BELIEFS / f"{name}.png") if record.get("beliefs") else None
        panel = _opened(believed) if believed is not None else None
        return Preview(
            name=name,
            what=what,
            stage=str(record.get("stage") or ""),
            images=images if isinstance(images, int) else None,
            captions=tuple(captions),
            pictures=() if grid is None else tuple(_cut(grid, captions, what, size)),
            health=_numbers(health) if isinstance(health, dict) else {},
            beliefs=None if panel is None else _shown(panel, f"what roles believe, {name}", largest=1200),
        )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _entries(path: Path) -> Iterator[Entry]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        try:
            record = json.loads(line)
            figures = _numbers(record)
        except (ValueError, AttributeError, RecursionError):  # torn, or none of ours
            continue
        stage, cycle = (figures.pop(name, -1.0) for name in ("stage", "cycle"))
        if stage < 0 or cycle < 0:
            continue
        said = record.get("note") or record.get("incident") or ""
        yield Entry(int(stage), int(cycle), figures.pop("images", None), figures, str(said))


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """The values that a plot can show: finite numbers."""
    numbers = {str(name): value for name, value in values.items() if isinstance(value, int | float)}
    return {name: float(value) for name, value in numbers.items() if _plotted(value)}


def _plotted(value: float) -> bool:
    return not isinstance(value, bool) and -sys.float_info.max <= value <= sys.float_info.max


def _holds_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (ABOUT, LOG, CONFIG, LOCK))


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _opened(path: Path) -> Image.Image | None:
    try:
        with Image.open(BytesIO(path.read_bytes())) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            image.load()
            return image.copy()
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _cut(grid: Image.Image, captions: list[str], what: str, size: Sequence[int]) -> Iterator[Picture]:
    """The pictures of a grid of so many columns, widths and heights, row by row."""
    columns, width, height = size
    for place, caption in enumerate(captions):
        left, top = GAP + place % columns * (width + GAP), GAP + place // columns * (height + GAP)
        if left + width <= grid.width and top + height <= grid.height:
            yield _shown(grid.crop((left, top, left + width, top + height)), f"{what}, {caption}")


def _shown(image: Image.Image, words: str, largest: int = LARGEST) -> Picture:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return Picture(words, *embedded(buffer.getvalue(), largest))
