"""Parquet files with encoded images, as the Hugging Face Hub stores image data sets."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..errors import UserError
from ..limits import NO_TEXT, plain
from .decode import Pixels, decode
from .mapped import mapped_column
from .pixels import PixelCache, check_settings
from .source import Items
from .table import Table

LABEL_NAMES = ("label", "labels", "class")
CAPTION_NAMES = ("caption", "text", "prompt")


@dataclass(frozen=True)
class ParquetImages:
    """Rows of a parquet file, or of all *.parquet files of a folder in the order of their names.

    Encoded images are read by memory map; those of a large set are unpacked into a file for that, once on each machine.

    Args:
        path: the file or folder.
        size: side in pixels; images are centre-cropped to a square and resized.
        image: column of encoded images, either bytes or a struct with a field `bytes`.
        label: column of integer labels; None takes one named label, labels or class, if there is one.
        caption: column of strings; None takes one named caption, text or prompt, if there is one.
        channels: 3 for RGB, 1 for grey.
        cache_gib: decoded images stay in memory while the whole set is no larger, in GiB of uint8 pixels.
        unreadable: images that may be skipped because they cannot be read, each said by its name.
    """

    path: Path
    size: int
    image: str = "image"
    label: str | None = None
    caption: str | None = None
    channels: Literal[1, 3] = 3
    cache_gib: float = 2.0
    unreadable: int = 100

    has_images: ClassVar[bool] = True

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label."""
        return None if self._labels is None else int(self._labels.max()) + 1

    @cached_property
    def prompts(self) -> tuple[str, ...] | None:
        if self.caption is None:
            name = self._table.usual(CAPTION_NAMES, _is_text)
        else:
            name = self._table.chosen(self.caption, _is_text)
        if name is None:
            return None
        texts = tuple(self._table.full_column(name).to_pylist())
        if (row := next((row for row, text in enumerate(texts) if NO_TEXT.search(text)), None)) is not None:
            plain(texts[row], f"the {name} in {self._table.where(row)}")
        return texts

    @property
    def reads(self) -> tuple[Path, ...]:
        """The files of all rows."""
        return tuple(self._table.files)

    def check(self) -> None:
        check_settings(self.size, self.channels, self.cache_gib, self.unreadable)
        self._table.chosen(self.image, _is_encoded)
        _ = self._labels, self.prompts

    def __len__(self) -> int:
        return len(self._table)

    def items(self, indices: Sequence[int]) -> Items:
        images, found = self._pixels.images(indices)
        return replace(self.without_images(found), images=images)

    def named(self, index: int) -> str:
        """The row of an item, and its file."""
        return self._table.where(index)

    def without_images(self, indices: Sequence[int]) -> Items:
        """Labels and prompts alone."""
        return Items(
            labels=None if self._labels is None else self._labels[torch.as_tensor(indices)],
            prompts=None if self.prompts is None else tuple(self.prompts[index] for index in indices),
        )

    @cached_property
    def _table(self) -> Table:
        return Table(self.path)

    @cached_property
    def _labels(self) -> Tensor | None:
        if self.label is None:
            name = self._table.usual(LABEL_NAMES, pa.types.is_integer)
        else:
            name = self._table.chosen(self.label, pa.types.is_integer)
        if name is None:
            return None
        labels = torch.from_numpy(self._table.full_column(name).to_numpy().astype(np.int64))
        if labels.min() < 0:
            raise UserError(
                f"column {name!r} of {self.path} has the label {int(labels.min())}, but labels count from 0; "
                "renumber them, or name another column as `label`"
            )
        return labels

    @cached_property
    def _encoded(self) -> pa.ChunkedArray:
        return mapped_column(self._table, self._table.chosen(self.image, _is_encoded))

    @cached_property
    def _pixels(self) -> PixelCache:
        shape = (len(self), self.channels, self.size, self.size)
        return PixelCache(self._decode, shape, limit_gib=self.cache_gib, unreadable=self.unreadable)

    def _decode(self, row: int) -> Pixels:
        where = self._table.where(row)
        cell = self._encoded[row].as_py()
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is None:
            raise UserError(f"the image in {where} has no bytes; embed the image in the row or drop the row")
        return decode(BytesIO(content), f"in {where}", size=self.size, channels=self.channels)


def _is_encoded(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_encoded(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
