"""The pictures beside a report: the same seeds for every row, one prompt with many seeds, nearest real images."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image, to_tensor

from fastgen.data.pixels import to_uint8
from fastgen.disk import named
from fastgen.sampling.pictures import labelled_rows

from ..collect import Seen
from ..images.sources import Picture
from ..measures.manifold import nearest
from ..metrics_json import Gallery, Item, Near, Report, Strip, Subject

STRIP = 8
NEIGHBOURS = 3
SCALE = 6  # of a contact sheet's pictures


class Showcase:
    """Writes image files below `folder` and says what they are.

    Args:
        count: pictures per row.
        seed: seed of the first picture.
        classes: names of the labels, as far as they are known.
    """

    def __init__(self, folder: Path, *, count: int, seed: int, classes: Sequence[str]) -> None:
        self.count = count
        self._folder, self._seed, self._classes = folder, seed, classes
        self._items: tuple[Item, ...] = ()
        self._images: dict[str, tuple[str | None, ...]] = {}
        self._strips: dict[str, tuple[str, ...]] = {}
        self._seeds: tuple[int, ...] = ()
        self._near: dict[str, tuple[tuple[Near, ...], ...]] = {}

    def add_row(self, row: str, seen: Seen, real: Tensor | None) -> None:
        """Keeps the first pictures of a row, and the nearest of the real features [N, d] if it is generated."""
        if seen.pictures and row not in self._images:
            saved = self._save(row, seen.pictures, "{}")
            self._images[row] = tuple(saved.get(number) for number in range(max(saved) + 1))
        features, numbers = seen.columns.get("features"), seen.columns.get("numbers")
        if real is not None and features is not None and numbers is not None:
            shown = numbers < self.count
            near = dict(zip(numbers[shown].tolist(), _near(features[shown], real), strict=True))
            self._near[row] = tuple(near.get(number, ()) for number in range(max(near, default=-1) + 1))

    def add_strip(self, row: str, pictures: Mapping[int, Tensor], asked: Mapping[str, Sequence[Any]]) -> None:
        """Keeps what one prompt or label looks like with many seeds.

        Args:
            row: id of the row.
            pictures: seed, counted from that of the first picture -> picture; the same seeds for every row.
            asked: labels or prompts of the first pictures of each row.
        """
        self._strips[row] = tuple(self._save(row, pictures, "strip-{}").values())
        self._seeds = tuple(self._seed + number for number in sorted(pictures))
        self._items = self._items or self._asked(asked)

    def add_neighbours(self, real: Iterable[Picture]) -> None:
        """Saves the real images that are nearest to any picture.

        Args:
            real: images in the order of their features; gone through only if some are wanted.
        """
        wanted = {near.index: near.image for row in self._near.values() for found in row for near in found}
        for index, image in enumerate(real if wanted else ()):
            if index in wanted:
                self._write(wanted[index], image())

    def gallery(self) -> Gallery | None:
        """The gallery of the pictures so far; None without any."""
        if not self._images:
            return None
        longest = max(map(len, self._images.values()))
        items = self._items or tuple(Item(seed=self._seed + i) for i in range(longest))
        return Gallery(items, self._images, self._strip(items[0]) if self._strips else None, self._near)

    def _strip(self, first: Item) -> Strip:
        asked = {field.name: getattr(first, field.name) for field in fields(Subject)}
        return Strip(**asked, seeds=self._seeds, images=self._strips)

    def _asked(self, arguments: Mapping[str, Sequence[Any]]) -> tuple[Item, ...]:
        labels, prompts = (arguments.get(name) or [None] * self.count for name in ("labels", "prompts"))
        names = dict(enumerate(self._classes))
        return tuple(
            Item(seed=self._seed + i, label=label, class_name=names.get(label), prompt=prompt)
            for i, (label, prompt) in enumerate(zip(labels, prompts, strict=True))
        )

    def _save(self, row: str, pictures: Mapping[int, Tensor], name: str) -> dict[int, str]:
        paths = {number: f"images/{row}/{name.format(self._seed + number)}.png" for number in sorted(pictures)}
        for number, path in paths.items():
            self._write(path, pictures[number])
        return paths

    def _write(self, path: str, picture: Tensor) -> None:
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        with named(file):
            to_pil_image(to_uint8(picture) if picture.is_floating_point() else picture).save(file)


def _near(features: Tensor, real: Tensor) -> Iterator[tuple[Near, ...]]:
    """Yields for each row of features [n, d] its nearest real images, by their features [N, d]."""
    found = nearest(features, real, NEIGHBOURS) if len(features) else None
    if found is not None:
        for indices, distances in zip(found.index.tolist(), found.distance.tolist(), strict=True):
            pairs = zip(indices, distances, strict=True)
            yield tuple(Near(index, away, f"images/real/neighbour-{index}.png") for index, away in pairs)


def contact_sheet(report: Report, folder: Path) -> Image.Image:
    """The pictures of the real row and of every drawn one below each other, from the report's folder."""
    titles = {row.id: row.title for row in report.rows}
    gallery = report.gallery
    assert gallery is not None
    rows = {
        titles[row]: torch.stack([to_tensor(Image.open(folder / path)) for path in paths if path is not None])
        for row, paths in gallery.images.items()
    }
    return labelled_rows(rows, SCALE)
