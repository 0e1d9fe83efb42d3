"""What training reads: numbered items, each an image, a class label, a prompt, or any mixture of these."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Items:
    """Some items of a source, in the order they were asked for; None is what the source does not have."""

    images: Tensor | None = None  # float32 [B, C, H, W] in [-1, 1]
    labels: Tensor | None = None  # int64 [B], counted from 0
    prompts: tuple[str, ...] | None = None
    numbers: tuple[int, ...] | None = None  # which items they are, where some may have given way to others
    size: tuple[int, int] | None = None  # height and width of the bucket, also where images are left out


class Source(Protocol):
    """A finite, numbered set of items. Sources are frozen dataclasses of their settings and load lazily."""

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
