"""The pictures beside a report: the same seeds for every row, one prompt with many seeds, nearest real images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from ..collect import Seen
from ..images.decode import Skipped, decode
from ..images.sets import open_images
from ..images.sources import PipelineSource
from ..measures.manifold import nearest

STRIP = 8
NEIGHBOURS = 3

Near = Sequence[tuple[int, float]]
"""Real images by their index, nearest first, and how far they are."""


@dataclass(frozen=True)
class Asked:
    """What one picture shows."""

    seed: int
    label: int | None = None
    prompt: str | None = None


class Showcase:
    """Writes image files below `folder` and says what they are, as the `gallery` of docs/metrics.md.

    Args:
        count: pictures per row.
        seed: of the first.
    """

    def __init__(self, folder: Path, *, count: int, seed: int) -> None:
        self._folder, self._count, self._seed = folder, count, seed
        self._asked: list[Asked] | None = None
        self._images: dict[str, list[str | None]] = {}
        self._strips: dict[str, list[str]] = {}
        self._near: dict[str, dict[int, Near]] = {}

    def add_row(self, row: str, seen: Seen, real: Tensor | None) -> None:
        """Keeps the first pictures of a row, and the nearest of the real features [N, d] if it is generated."""
        if seen.pictures and row not in self._images:
            saved = self._save(row, seen.pictures, "{}")
            self._images[row] = [saved.get(number) for number in range(max(saved) + 1)]
        features, numbers = seen.columns.get("features"), seen.columns.get("numbers")
        if real is not None and features is not None and numbers is not None:
            shown = numbers < self._count
            self._near[row] = dict(zip(numbers[shown].tolist(), _near(features[shown], real), strict=True))

    def add_strip(self, row: str, source: PipelineSource) -> None:
        """Draws one prompt or label with many seeds."""
        batches = source.strip(STRIP)
        pictures = dict(enumerate(image for batch in batches for image in batch.images))
        self._strips[row] = list(self._save(row, pictures, "strip-{}").values())
        if self._asked is None:
            self._asked = _asked(source.asked(range(self._count)), self._seed, self._count)

    def add_neighbours(self, reference: Path, *, skipped: Sequence[Skipped]) -> None:
        """Saves the real images that are nearest to any picture; reads the reference once more."""
        wanted = {index for near in self._near.values() for found in near.values() for index, _ in found}
        unread = {skip.name for skip in skipped}
        kept = (image for image in open_images(reference) if image.name not in unread)
        for index, image in enumerate(kept if wanted else ()):
            if index in wanted:
                self._write(self._neighbour(index), decode(image))

    def as_json(self, class_names: Sequence[str]) -> dict[str, Any] | None:
        """None without pictures."""
        if not self._images:
            return None
        asked = self._asked or [Asked(self._seed + i) for i in range(max(map(len, self._images.values())))]
        items = [_item(one, class_names) for one in asked]
        strip = None
        if self._strips:
            first = {name: value for name, value in items[0].items() if name != "seed"}
            strip = {**first, "seeds": [self._seed + i for i in range(STRIP)], "images": self._strips}
        near = {row: self._neighbours(found) for row, found in self._near.items()}
        return {"items": items, "images": self._images, "strip": strip, "neighbours": near}

    def _neighbours(self, near: Mapping[int, Near]) -> list[list[dict[str, Any]]]:
        """Of picture 0, 1 ...; none of one that was not measured."""
        return [
            [
                {"index": index, "distance": distance, "image": self._neighbour(index)}
                for index, distance in near.get(number, ())
            ]
            for number in range(max(near, default=-1) + 1)
        ]

    def _save(self, row: str, pictures: Mapping[int, Tensor], name: str) -> dict[int, str]:
        paths = {number: f"images/{row}/{name.format(self._seed + number)}.png" for number in sorted(pictures)}
        for number, path in paths.items():
            self._write(path, pictures[number])
        return paths

    def _write(self, path: str, picture: Tensor) -> None:
        file = self._folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        image: Image.Image = to_pil_image(picture.to(torch.uint8))
        image.save(file)

    @staticmethod
    def _neighbour(index: int) -> str:
        return f"images/real/neighbour-{index}.png"


def _near(features: Tensor, real: Tensor) -> list[Near]:
    """Of each row of features [n, d] the nearest of the real ones [N, d]."""
    if not len(features):
        return []
    found = nearest(features, real, NEIGHBOURS)
    return [
        list(zip(indices, distances, strict=True))
        for indices, distances in zip(found.index.tolist(), found.distance.tolist(), strict=True)
    ]


def _asked(arguments: Mapping[str, Sequence[Any]], seed: int, count: int) -> list[Asked]:
    labels, prompts = (arguments.get(name) or [None] * count for name in ("labels", "prompts"))
    return [Asked(seed + i, labels[i], prompts[i]) for i in range(count)]


def _item(asked: Asked, class_names: Sequence[str]) -> dict[str, Any]:
    known = asked.label is not None and asked.label < len(class_names)
    name = class_names[asked.label] if known and asked.label is not None else None
    return {"seed": asked.seed, "label": asked.label, "class_name": name, "prompt": asked.prompt}
