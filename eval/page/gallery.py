"""Pictures side by side: the same seeds, one prompt with many seeds, the nearest real images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from .. import metrics_json
from ..metrics_json import Item, Near
from ..report.flagged import flags_of
from ..rows import Row
from .pictures import Picture, Pictures
from .sides import Column, Sides
from .words import asked, number


@dataclass(frozen=True)
class Cell:
    """A place of a grid: None for a picture that could not be used; what its pipeline's checkers said; its request."""

    picture: Picture | None
    flags: str = ""
    asked: str = ""


@dataclass(frozen=True)
class Grid:
    """The pictures of a column."""

    column: Column
    cells: tuple[Cell, ...]

    @property
    def note(self) -> str:
        """Why it is empty, or that its pictures are not of the seeds beside them."""
        row = self.column.row
        if not self.cells:
            return "was not measured" if row is None else "has no pictures"
        return "" if row is None or _drawn(row) else "first images of its files, not of these seeds"


@dataclass(frozen=True)
class Card:
    """A sample and the real images nearest to it, each with its distance."""

    sample: Picture | None
    near: tuple[tuple[Picture, float], ...]


@dataclass(frozen=True)
class Neighbours:
    """The cards of a student's row; the median distance of every row to its nearest, by column."""

    cards: tuple[tuple[Column, tuple[Card, ...]], ...]
    medians: tuple[tuple[Column, float], ...]


@dataclass(frozen=True)
class Gallery:
    """All pictures of a page.

    Attributes:
        strip: one prompt or label with many seeds, None without one.
        kind: what the strip's pictures share: a prompt, a class, or the pipeline alone.
        asked: what the strip shows, in words.
        seeds: seeds of the strip.
        neighbours: None where nothing was compared with real images.
    """

    grids: tuple[Grid, ...]
    real: tuple[Grid, ...]
    strip: tuple[Grid, ...] | None
    kind: str
    asked: str
    seeds: str
    neighbours: Neighbours | None

    @classmethod
    def of(cls, gallery: metrics_json.Gallery, sides: Sides, pictures: Pictures) -> "Gallery":
        """Reads the image files.

        Raises:
            UserError: a path leads out of the report folder.
        """
        real = [Column(None, "real", row.title, row) for row in sides.real if row.id in gallery.images]
        strip = gallery.strip
        return cls(
            grids=tuple(_grid(column, gallery, pictures) for column in sides.columns),
            real=tuple(_grid(column, gallery, pictures) for column in real),
            strip=None if strip is None else tuple(_strip(column, strip, pictures) for column in sides.columns),
            kind="prompt" if strip and strip.prompt is not None else "class" if strip and asked(strip) else "pipeline",
            asked=(strip and asked(strip)) or "no condition",
            seeds=f"{strip.seeds[0]} to {strip.seeds[-1]}" if strip and strip.seeds else "none",
            neighbours=_neighbours(gallery, sides, pictures) if any(gallery.neighbours.values()) else None,
        )


def _grid(column: Column, gallery: metrics_json.Gallery, pictures: Pictures) -> Grid:
    paths = () if column.row is None else gallery.images.get(column.row.id, ())
    cells = (
        Cell(_picture(path, column, item, pictures), flags_of(column.row, index), asked(item))
        for index, (path, item) in enumerate(zip(paths, gallery.items, strict=False))
    )
    return Grid(column, tuple(cells))


def _strip(column: Column, strip: metrics_json.Strip, pictures: Pictures) -> Grid:
    paths = () if column.row is None else strip.images.get(column.row.id, ())
    seeds = zip(paths, strip.seeds, strict=False)
    shown = (pictures.show(path, f"{column.title}, {asked(strip)}, seed {seed}") for path, seed in seeds)
    return Grid(column, tuple(map(Cell, shown)))


def _picture(path: str | None, column: Column, item: Item, pictures: Pictures) -> Picture | None:
    if path is None:
        return None
    words = [f"seed {item.seed}", asked(item)] if column.row is not None and _drawn(column.row) else []
    return pictures.show(path, ", ".join(word for word in [column.title, *words] if word))


def _neighbours(gallery: metrics_json.Gallery, sides: Sides, pictures: Pictures) -> Neighbours:
    found = {row.id: gallery.neighbours.get(row.id, ()) for _, row in sides.shown}
    nearest = [(column, [near[0].distance for near in found[row.id] if near]) for column, row in sides.shown]
    return Neighbours(
        cards=tuple(
            (column, tuple(_cards(column, row, found[row.id], gallery, pictures)))
            for column, row in sides.shown
            if row.role == "student"
        ),
        medians=tuple((column, median(distances)) for column, distances in nearest if distances),
    )


def _cards(
    column: Column, row: Row, found: Sequence[Sequence[Near]], gallery: metrics_json.Gallery, pictures: Pictures
) -> Iterator[Card]:
    paths = gallery.images.get(row.id, ())
    for path, item, near in zip(paths, gallery.items, found, strict=False):
        beside = tuple(
            (pictures.show(one.image, f"real image {one.index}, distance {number(one.distance)}"), one.distance)
            for one in near
        )
        yield Card(_picture(path, column, item, pictures), beside)


def _drawn(row: Row) -> bool:
    """Whether its images were drawn for the seeds of the gallery."""
    return row.source.kind == "pipeline"
