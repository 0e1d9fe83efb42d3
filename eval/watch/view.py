"""All that the page of a run shows, worked out; the template only lays it out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ..page.gallery import Cell, Grid
from ..page.sides import Column
from .curves import Curves
from .files import Entry, Preview, RunFiles, State

MOST_PREVIEWS = 6
TAIL = 12
"""Lines of the log that are shown."""


@dataclass(frozen=True)
class Moment:
    """The generator's pictures at a moment, beside the teacher's.

    Attributes:
        key: of the menu.
        title: where the run stood.
        grids: the teacher's, where there are any, then the student's.
    """

    key: str
    title: str
    grids: tuple[Grid, ...]
    preview: Preview


@dataclass(frozen=True)
class Tile:
    """A figure that stands above the others."""

    name: str
    value: str
    about: str


@dataclass(frozen=True)
class RunView:
    """A run in the order of its page.

    Attributes:
        moments: pictures, the latest first.
        tail: the last lines of the log in words, the latest first.
    """

    title: str
    state: State
    tiles: tuple[Tile, ...]
    header: Mapping[str, str]
    closing: Mapping[str, str]
    commands: tuple[str, ...]
    moments: tuple[Moment, ...]
    teacher_health: Mapping[str, float]
    curves: Curves
    tail: tuple[str, ...]
    holder: str
    version: str

    @classmethod
    def of(cls, run: RunFiles) -> "RunView":
        teacher = run.teacher
        return cls(
            title=run.folder.resolve().name,
            state=run.state,
            tiles=tuple(_tiles(run)),
            header=run.told("header"),
            closing=run.told("closing"),
            commands=run.commands,
            moments=tuple(_moments(run, teacher))[::-1],
            teacher_health={} if teacher is None else teacher.health,
            curves=Curves.of(run.log, run.pace),
            tail=tuple(_tail(run.log)),
            holder=str(run.holder or ""),
            version=run.version,
        )


def _tiles(run: RunFiles) -> Iterator[Tile]:
    stages = run.stages
    if run.log:
        last = run.log[-1]
        place = run.told("header").get(stages[last.stage], "") if last.stage < len(stages) else ""
        latest = next((entry.images for entry in reversed(run.log) if entry.images is not None), 0)
        yield Tile(f"stage {last.stage + 1} of {max(len(stages), last.stage + 1)}", f"{latest:,.0f} images", place)
    for name in _decisive(run.log):
        values = [entry.figures[name] for entry in run.log if name in entry.figures]
        yield Tile(name.removeprefix("quality/"), f"{values[-1]:.4g}", f"of few samples; at first {values[0]:.4g}")
    if run.pace:
        figures = run.pace[-1].figures
        if "pace/images_per_second" in figures:
            seconds = figures.get("pace/seconds_per_cycle", 0)
            yield Tile("pace", f"{figures['pace/images_per_second']:.3g} images/s", f"a cycle takes {seconds:.3g} s")
        peak = f"at most {figures['memory/peak_gib']:.3g} GiB" if "memory/peak_gib" in figures else ""
        if "memory/gib" in figures:
            yield Tile("memory", f"{figures['memory/gib']:.3g} GiB", peak)


def _decisive(log: tuple[Entry, ...]) -> list[str]:
    """The first figure of quality that was measured."""
    return next(([name] for entry in log for name in entry.figures if name.startswith("quality/")), [])


def _moments(run: RunFiles, teacher: Preview | None) -> Iterator[Moment]:
    for preview in run.previews(MOST_PREVIEWS):
        at = "" if preview.images is None else f"{preview.images:,} images of stage {preview.stage}"
        sides = [(preview, "student")] if teacher is None else [(teacher, "many"), (preview, "student")]
        yield Moment(preview.name, at, tuple(_grid(one, kind) for one, kind in sides), preview)


def _grid(preview: Preview, kind: str) -> Grid:
    column = Column(None, "many" if kind == "many" else "student", preview.what, None)
    pairs = zip(preview.pictures, preview.captions, strict=False)
    return Grid(column, tuple(Cell(picture, asked=caption) for picture, caption in pairs))


def _tail(log: tuple[Entry, ...]) -> Iterator[str]:
    for entry in log[: -TAIL - 1 : -1]:
        at = f"stage {entry.stage + 1}, cycle {entry.cycle}"
        where = at if entry.images is None else f"{at}, {entry.images:,.0f} images"
        figures = ", ".join(f"{name} {value:.4g}" for name, value in entry.figures.items())
        yield ": ".join(part for part in (where, entry.said, figures) if part)
