"""What all sources of encoded images have in common: shapes, channels, captions, and images that cannot be read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .buckets import Buckets, nearest
from .captions import Captions, Text
from .decode import Pixels, Size, colour_of, decode, size_of
from .mixture import Mixture
from .pixels import PixelCache, check_settings, to_images
from .sizes import sizes_of
from .source import Items, Source


def of_one_shape(source: Any) -> Any:
    """A source whose images all have the shape of `size`: one with buckets crops them to it, the same files or rows."""
    if isinstance(source, Mixture):
        return replace(source, parts=tuple(map(of_one_shape, source.parts)))
    return replace(source, buckets=None) if getattr(source, "buckets", None) is not None else source


class Records(Protocol):
    """Encoded images with what belongs to each, by their numbers from 0."""

    def __len__(self) -> int: ...

    @property
    def captions(self) -> Captions | None:
        """The captions of every image; None where they have none."""

    @property
    def num_classes(self) -> int | None:
        """Labels lie in 0 .. num_classes - 1; None where the images have no classes."""

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """int64 [B] of these images; None where they have no classes."""

    @property
    def files(self) -> Sequence[Path]:
        """All files that are read."""

    def encoded(self, number: int) -> Path | BytesIO:
        """An image as a file or its content; raises UserError where there is none."""

    def named(self, number: int) -> str:
        """What messages call an image."""


@dataclass(frozen=True)
class ImageSource(Source, ABC):
    """Images of one size, or of a bucket's, with labels and captions where they have them.

    Args:
        size: side in pixels, or height and width; images are cropped around their middle to that shape and resized.
        channels: 3 for RGB, 1 for grey.
        background: colour under transparent images, by name or as #rrggbb.
        buckets: images keep about their own shape, of as many pixels as `size` has; a batch has one shape.
        text: what a caption's text is: caption, one in all; lines, a caption on each, drawn every time; tags, between
            commas, in another order every time.
        cache_gib: decoded images stay in memory while the whole set is no larger, in GiB of uint8 pixels.
        unreadable: images that may be skipped because they cannot be read, each said by its name.
    """

    path: Path | str
    size: int | Size
    _: KW_ONLY
    channels: Literal[1, 3] = 3
    background: str = "white"
    buckets: Buckets | None = None
    text: Text = "caption"
    cache_gib: float = 2.0
    unreadable: int = 100

    has_images: ClassVar[bool] = True

    @property
    @abstractmethod
    def records(self) -> Records:
        """The images as they are stored; raises UserError where there are none."""

    @property
    def num_classes(self) -> int | None:
        return self.records.num_classes

    @cached_property
    def captions(self) -> Captions | None:
        """All captions that items may be asked for by."""
        return self.records.captions

    @cached_property
    def prompts(self) -> Sequence[str] | None:
        return None if self.captions is None else self.captions.firsts

    @property
    def reads(self) -> Sequence[Path]:
        """The files of all items."""
        return self.records.files

    def check(self) -> None:
        check_settings(self._size, self.channels, self.cache_gib, self.unreadable)
        colour_of(self.background)
        if self.buckets is not None:
            self.buckets.check(self._size)
        _ = len(self.records), self.num_classes, self.captions

    def recall(self, records: Records) -> None:
        """Takes the images from what is known of them from now on, in place of their files."""
        vars(self)["records"] = records

    def __len__(self) -> int:
        return len(self.records)

    def items(self, indices: Sequence[int]) -> Items:
        pixels, found = self.pixels(indices)
        return replace(self.without_images(found), images=to_images(pixels), numbers=tuple(found))

    def pixels(self, indices: Sequence[int]) -> tuple[Tensor, list[int]]:
        """uint8 [B, C, H, W] of the items at `indices`, and which items they are in the end."""
        return self._decoded.images(indices)

    def named(self, index: int) -> str:
        """What messages call an item."""
        return self.records.named(index)

    def frames(self, indices: Sequence[int]) -> Tensor:
        """Sizes and crops, [B, 4]."""
        return torch.tensor([self._frame(index) for index in indices], dtype=torch.int64)

    def _frame(self, index: int) -> tuple[int, int, int, int]:
        if self._sizes is None:
            height, width = size_of(self.records.encoded(index), self.records.named(index))
        else:
            height, width = self._sizes[index].tolist()
        down, across = self._shape(index)
        scale = max(down / height, across / width)
        return height, width, round((height * scale - down) / 2), round((width * scale - across) / 2)

    @cached_property
    def _sizes(self) -> NDArray[np.int64] | None:
        """Heights and widths of all images, [n, 2], where they are known anyway."""
        known: NDArray[np.int64] | None = getattr(self.records, "sizes", None)
        return known if self.buckets is None else sizes_of(self.records)

    def _shape(self, index: int) -> Size:
        """The shape that an image is trained in."""
        return self.shapes[0 if self.bucket is None else int(self.bucket[index])]

    def without_images(self, indices: Sequence[int]) -> Items:
        """Labels, prompts and the shape alone."""
        return Items(
            labels=self.records.labels(indices),
            prompts=None if self.captions is None else tuple(self.captions[index] for index in indices),
            size=None if self.bucket is None else self.shapes[int(self.bucket[indices[0]])],
        )

    @cached_property
    def shapes(self) -> tuple[Size, ...]:
        """Height and width of every bucket; of one without buckets, of all images."""
        return (self._size,) if self.buckets is None else self.buckets.shapes(self._size)

    @cached_property
    def bucket(self) -> NDArray[np.int64] | None:
        """The number of each item's shape, [n]; None where all have the same."""
        if self.buckets is None or self._sizes is None:
            return None
        return nearest(self._sizes, self.shapes)

    @property
    def _size(self) -> Size:
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @cached_property
    def _decoded(self) -> PixelCache:
        count = len(self.records)
        if self.bucket is None:
            pixels, after = count * self._size[0] * self._size[1], None
        else:
            areas = np.array([height * width for height, width in self.shapes])
            pixels, after = int(areas[self.bucket].sum()), _next_alike(self.bucket).__getitem__
        size, limit = self.channels * pixels, self.cache_gib
        return PixelCache(self._decode, count, size=size, limit_gib=limit, unreadable=self.unreadable, after=after)

    def _decode(self, index: int) -> Pixels:
        shape = self._shape(index)
        name, encoded = self.records.named(index), self.records.encoded(index)
        return decode(encoded, name, size=shape, channels=self.channels, background=self.background)


def _next_alike(bucket: NDArray[np.int64]) -> NDArray[np.int64]:
    """Item number -> the next of its bucket, after the last one the first."""
    following = np.empty_like(bucket)
    for number in np.unique(bucket):
        members = np.flatnonzero(bucket == number)
        following[members] = np.roll(members, -1)
    return following
