"""Several sources as one, each with its share of the positions."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from .captions import Captions
from .decode import Size
from .source import Items, Source

LEAST, MOST = 1000, 10_000_000  # positions of an epoch


@dataclass(frozen=True)
class Mixture(Source):
    """Items of several sources: numbered one source after the other, drawn in shares.

    Args:
        parts: the sources.
        weights: of each, in proportion to which positions are theirs.
    """

    parts: tuple[Source, ...]
    weights: tuple[float, ...]

    @property
    def has_images(self) -> bool:
        return all(part.has_images for part in self.parts)

    @property
    def num_classes(self) -> int | None:
        known = [part.num_classes for part in self.parts]
        return None if None in known else max(filter(None, known), default=None)

    @cached_property
    def captions(self) -> Captions | None:
        """All captions that items may be asked for by."""
        found = [part.captions for part in self.parts]
        some = [captions for captions in found if captions is not None]
        return Captions.joined(some) if len(some) == len(found) else None

    @cached_property
    def prompts(self) -> Sequence[str] | None:
        return None if self.captions is None else self.captions.firsts

    @property
    def reads(self) -> Sequence[Path]:
        """The files of all sources."""
        return [file for part in self.parts for file in part.reads]

    @property
    def path(self) -> Path:
        """What the names of these files are relative to."""
        return Path("/")

    @cached_property
    def shares(self) -> tuple[int, ...]:
        """Positions of each source in an epoch, which has about as many as there are items."""
        count = min(max(len(self), LEAST), MOST)
        whole = sum(self.weights)
        return tuple(max(1, round(count * weight / whole)) for weight in self.weights)

    @cached_property
    def bucket(self) -> NDArray[np.int64] | None:
        """The number of each item's shape; None where all have the same."""
        found = [part.bucket for part in self.parts]
        known = [one for one in found if one is not None]
        return np.concatenate(known) if len(known) == len(found) else None

    @property
    def shapes(self) -> tuple[Size, ...]:
        """Height and width of every bucket."""
        return self.parts[0].shapes

    def check(self) -> None:
        for place, part in enumerate(self.parts):
            part.check()
            self._check_alike(place, part)

    def _check_alike(self, place: int, part: Source) -> None:
        first = self.parts[0]
        rules: dict[str, Callable[[Any], object]] = {
            "images": lambda one: one.has_images,
            "prompts": lambda one: one.prompts is not None,
            "labels": lambda one: one.num_classes is not None,
            "shapes (size, channels, buckets)": lambda one: (one.shapes, getattr(one, "channels", 3)),
        }
        for what, told in rules.items():
            if told(part) != told(first):
                raise UserError(
                    f"data {place + 1} and data 1 differ in their {what}, and are to be trained on together: give all "
                    "of them the same, or leave one out"
                )

    def __len__(self) -> int:
        return self._ends[-1]

    def items(self, indices: Sequence[int]) -> Items:
        return self._joined(indices, lambda part, numbers: part.items(numbers))

    def pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """uint8 [B, C, H, W] of the items at `indices`, and which items they are in the end, of sources of files."""
        found = self._joined(indices, _pixels_of)
        assert found.images is not None
        assert found.numbers is not None
        return found.images, list(found.numbers)

    def frames(self, indices: Sequence[int]) -> Tensor | None:
        """Sizes and crops, [B, 4], where all sources know them."""
        found = [self.parts[place].frames([number]) for place, number in map(self._place, indices)]
        known = [one for one in found if one is not None]
        return torch.cat(known) if len(known) == len(found) else None

    def without_images(self, indices: Sequence[int]) -> Items:
        """Labels, prompts and the shape alone."""
        return self._joined(indices, lambda part, numbers: part.without_images(numbers))

    def named(self, index: int) -> str:
        """What messages call an item."""
        place, number = self._place(index)
        return f"{self.parts[place].named(number)} of data {place + 1}"

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self.parts)))

    def _place(self, index: int) -> tuple[int, int]:
        place = bisect_right(self._ends, index)
        return place, index - (self._ends[place - 1] if place else 0)

    def _joined(self, indices: Sequence[int], read: Callable[[Source, list[int]], Items]) -> Items:
        placed = [self._place(index) for index in indices]
        order: list[int] = []
        found: list[Items] = []
        numbers: list[int] = []
        for place, part in enumerate(self.parts):
            rows = [row for row, (owner, _) in enumerate(placed) if owner == place]
            if rows:
                asked = [placed[row][1] for row in rows]
                items, start = read(part, asked), self._ends[place] - len(part)
                order, found = order + rows, [*found, items]
                numbers += [start + number for number in items.numbers or asked]
        back = np.argsort(order).tolist()
        prompts = None if found[0].prompts is None else [text for one in found for text in one.prompts or ()]
        return Items(
            images=_stacked([one.images for one in found], back),
            labels=_stacked([one.labels for one in found], back),
            prompts=None if prompts is None else tuple(prompts[row] for row in back),
            numbers=tuple(numbers[row] for row in back),
            size=found[0].size,
        )


def _pixels_of(part: Any, numbers: list[int]) -> Items:
    pixels, found = part.pixels(numbers)
    return Items(images=pixels, numbers=tuple(found))


def _stacked(parts: Sequence[Tensor | None], rows: Sequence[int]) -> Tensor | None:
    some = [part for part in parts if part is not None]
    return torch.cat(some)[rows] if len(some) == len(parts) else None


def sources_in(source: Source) -> tuple[Source, ...]:
    """The sources that a mixture consists of; any other source alone."""
    return source.parts if isinstance(source, Mixture) else (source,)
