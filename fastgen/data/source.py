"""What training reads: numbered items, each an image, a class label, a prompt, or any mixture of these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .captions import Captions
from .decode import Size


@dataclass(frozen=True, eq=False)
class Items:
    """Some items of a source, in the order they were asked for; None is what the source does not have."""

    images: Tensor | None = None  # float32 [B, C, H, W] in [-1, 1]
    labels: Tensor | None = None  # int64 [B], counted from 0
    prompts: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None  # which items they are, where some may have given way to others
    size: tuple[int, int] | None = None  # height and width of the bucket, also where images are left out


class Source(Protocol):
    """A finite, numbered set of items. Sources are frozen dataclasses of their settings and load lazily.

    What has a default here is left out by a source that it does not concern.
    """

    @property
    def has_images(self) -> bool:
        """Whether items carry images; without them training is data-free."""

    @property
    def num_classes(self) -> int | None:
        """Labels lie in 0 .. num_classes - 1; None when items carry no label."""

    @property
    def prompts(self) -> Sequence[str] | None:
        """The prompt of every item in order, known without decoding an image; None when there are none."""

    def check(self) -> None:
        """Raise UserError for settings or files that cannot work, without decoding the images."""

    def __len__(self) -> int: ...

    def items(self, indices: Sequence[int]) -> Items:
        """The items at `indices` (each in 0 .. len - 1, repeats allowed).

        Raises:
            UserError: an item cannot be read; the message names its file, or its parquet row.
        """

    def without_images(self, indices: Sequence[int]) -> Items:
        """The same without images, which are best not even decoded then."""
        return replace(self.items(indices), images=None)

    def frames(self, indices: Sequence[int]) -> Tensor | None:
        """int64 [B, 4]: height and width of these images as they are stored, top and left of their part that is seen.

        The latter two in pixels of the image as large as it is when that part has the shape that it is trained in. None
        where that is not known.
        """
        return None

    def named(self, index: int) -> str:
        """What messages call an item."""
        return f"item {index}"

    @property
    def captions(self) -> Captions | None:
        """All captions that items may be asked for by; None where they have no texts."""
        return None if self.prompts is None else Captions(self.prompts)

    @property
    def shapes(self) -> tuple[Size, ...]:
        """Height and width of every bucket, or the one of all images; none where they are not known before."""
        return ()

    @property
    def bucket(self) -> NDArray[np.int64] | None:
        """The number of each item's shape in `shapes`, [n]; None where all have the same."""
        return None

    @property
    def sequential(self) -> int | None:
        """Items that are read together, in order; None where any may be read by itself."""
        return None

    @property
    def reads(self) -> Sequence[Path]:
        """The files that items are read from, as far as a run is to notice that they have changed."""
        return ()
