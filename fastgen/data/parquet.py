"""Parquet files with encoded images, as the Hugging Face Hub stores image data sets."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ..errors import UserError
from ..limits import NO_TEXT, plain
from .captions import Captions, Text
from .images import ImageSource
from .mapped import mapped_column
from .metadata import CAPTION_NAMES
from .table import Table

LABEL_NAMES = ("label", "labels", "class")


@dataclass(frozen=True)
class ParquetImages(ImageSource):
    """Rows of a parquet file, or of all *.parquet files of a folder in the order of their names.

    Encoded images are read by memory map; those of a large set are unpacked into a file for that, once on each machine.
    The files may also lie in the folder's own folder `data`, as data sets of the hub have them.

    Args:
        path: the file or folder.
        image: column of encoded images, either bytes or a struct with a field `bytes`.
        label: column of integer labels; None takes one named label, labels or class, if there is one.
        caption: column of strings, or of lists of them; None takes one named caption, text or prompt, if there is one.
    """

    path: Path
    _: KW_ONLY
    image: str = "image"
    label: str | None = None
    caption: str | None = None

    @cached_property
    def records(self) -> "TableRecords":
        return TableRecords(Table(self.path), image=self.image, label=self.label, caption=self.caption, text=self.text)


class TableRecords:
    """Rows of a table.

    Args:
        table: the table.
        image, label, caption: names of its columns, see `ParquetImages`.
        text: what a caption is.
    """

    def __init__(self, table: Table, *, image: str, label: str | None, caption: str | None, text: Text) -> None:
        self._table, self._image, self._label, self._caption, self._text = table, image, label, caption, text

    def __len__(self) -> int:
        _ = self._column
        return len(self._table)

    @property
    def num_classes(self) -> int | None:
        """One more than the largest label."""
        return None if self._labels is None else int(self._labels.max()) + 1

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The labels of these rows."""
        return None if self._labels is None else self._labels[torch.as_tensor(numbers)]

    @cached_property
    def captions(self) -> Captions | None:
        """The texts of a column."""
        if self._caption is None:
            name = self._table.usual(CAPTION_NAMES, _is_text)
        else:
            name = self._table.chosen(self._caption, _is_text)
        if name is None:
            return None
        cells = self._table.full_column(name).to_pylist()
        texts = [[cell] if isinstance(cell, str) else list(cell) for cell in cells]
        for row, some in enumerate(texts):
            check_texts(some, f"the {name} in {self._table.where(row)}")
        return Captions.read(texts, self._text)

    @property
    def files(self) -> Sequence[Path]:
        """The files of all rows."""
        return self._table.files

    def named(self, number: int) -> str:
        """The row, and its file."""
        return self._table.where(number)

    def encoded(self, number: int) -> BytesIO:
        """The image of a row."""
        cell = self._encoded[number].as_py()
        content = cell["bytes"] if isinstance(cell, dict) else cell
        if content is None:
            raise UserError(
                f"the image in {self._table.where(number)} has no bytes; embed the image in the row or drop the row"
            )
        return BytesIO(content)

    @cached_property
    def _column(self) -> str:
        return self._table.chosen(self._image, _is_encoded)

    @cached_property
    def _labels(self) -> Tensor | None:
        if self._label is None:
            name = self._table.usual(LABEL_NAMES, pa.types.is_integer)
        else:
            name = self._table.chosen(self._label, pa.types.is_integer)
        if name is None:
            return None
        labels = torch.from_numpy(self._table.full_column(name).to_numpy().astype(np.int64))
        if labels.min() < 0:
            raise UserError(
                f"column {name!r} of {self._table.path} has the label {int(labels.min())}, but labels count from 0; "
                "renumber them, or name another column as `label`"
            )
        return labels

    @cached_property
    def _encoded(self) -> pa.ChunkedArray:
        return mapped_column(self._table, self._column)


def check_texts(texts: Sequence[str | None], where: str) -> None:
    """Raises UserError for no text at all, and for what is none."""
    if not texts or None in texts:
        raise UserError(f"{where} is an empty list, or one with empty places: give at least one text for each image")
    for text in texts:
        if text is not None and NO_TEXT.search(text):
            plain(text, where)


def _is_encoded(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _is_encoded(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
