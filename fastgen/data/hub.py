"""Data sets of the Hugging Face Hub, and folders laid out alike, by the library `datasets`: at hand, or streamed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .captions import Captions, Text
from .columns import Columns, columns_of, content_of
from .images import ImageSource
from .parquet import check_texts
from .stream import Stream


@dataclass(frozen=True)
class HubImages(ImageSource):
    """Rows of a data set of the Hugging Face Hub, or of a local folder that the library `datasets` reads.

    It reads parquet files (in the folder or in `data`), image folders with metadata.jsonl, WebDataset shards and more.
    What is not streamed is brought here first and read by memory map. A stream is read in the order of its files, a
    window of rows at a time, whose rows are shuffled; a run that is resumed goes on at its own window.

    Args:
        path: id of a data set on the hub, or a folder.
        name: name of one of its configurations, where it has several.
        split: part of it.
        revision: branch, tag or commit on the hub; the newest where not given.
        streaming: it is read from where it lies, and its captions are encoded in a first pass over it.
        rows: how many rows of a stream count; all of them, where it says how many it has.
        window: rows of a stream that are held in memory, encoded, and shuffled among each other.
        image: column of images.
        label: column of whole numbers; None takes one named label, labels or class, if there is one.
        caption: column of texts, or of lists of them; None takes one named caption, text or prompt, if there is one.
    """

    path: str
    _: KW_ONLY
    name: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    rows: int | None = None
    window: int = 1024
    image: str = "image"
    label: str | None = None
    caption: str | None = None

    @cached_property
    def records(self) -> "HubRows | Stream":
        return self._streamed() if self.streaming else HubRows(self._first, self._columns, self.text)

    @property
    def sequential(self) -> int | None:
        """Items that are read together, in order; None where any may be read by itself."""
        return self.window if self.streaming else None

    def check(self) -> None:
        if find_spec("datasets") is None:
            raise UserError("data.source is datasets, whose library is not installed: pip install 'fastgen[datasets]'")
        if not self.streaming and self.rows is not None:
            raise UserError("data.rows is for data that are streamed: set data.streaming=true, or leave it out")
        if self.streaming and self.buckets is not None:
            raise UserError(
                "buckets need the size of every image before training, which a stream does not tell: set "
                "data.streaming=false, or leave data.buckets out"
            )
        if self.streaming and self.text != "caption":
            raise UserError(
                f"data.text is {self.text}, several captions of an image, which a stream does not tell before: set "
                "data.streaming=false, or data.text=caption"
            )
        if self.window < 1 or (self.rows is not None and self.rows < 1):
            raise UserError(f"data.window is {self.window} and data.rows {self.rows}: at least 1 row is read")
        super().check()

    def _streamed(self) -> Stream:
        told = (self._first.info.splits or {}).get(self.split)
        rows = self.rows or getattr(told, "num_examples", 0)
        if not rows:
            raise UserError(
                f"the data set {self.path} does not say how many rows its {self.split} has: say how many count with "
                "data.rows"
            )
        columns, identity = self._columns, (self.path, self.name, self.split, self.revision)
        return Stream(self._opened, columns, rows, self.window, identity, called=f"{self.path} {self.split}")

    def _opened(self) -> Any:
        """The data set as its library has it; its images are not decoded."""
        import datasets

        with _understood(self.path):
            opened = datasets.load_dataset(
                self.path, self.name, split=self.split, revision=self.revision, streaming=self.streaming
            )
            if opened.features is None:
                opened = opened._resolve_features()
            encoded = datasets.Image(decode=False)
            for column, feature in opened.features.items():
                if isinstance(feature, datasets.Image):
                    opened = opened.cast_column(column, encoded)
        return opened

    @cached_property
    def _first(self) -> Any:
        return self._opened()

    @cached_property
    def _columns(self) -> Columns:
        return columns_of(self._first.features, self.path, image=self.image, label=self.label, caption=self.caption)


class HubRows:
    """Rows of a data set that is at hand.

    Args:
        rows: the data set, of the library `datasets`.
        columns: what is read.
        text: what a caption is.
    """

    def __init__(self, rows: Any, columns: Columns, text: Text) -> None:
        self._rows, self._columns, self._text = rows, columns, text

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the labels declare, else one more than the largest label."""
        if self._labels is None:
            return None
        return self._columns.classes or int(self._labels.max()) + 1

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The labels of these rows."""
        return None if self._labels is None else self._labels[torch.as_tensor(numbers)]

    @cached_property
    def captions(self) -> Captions | None:
        """The texts of a column."""
        name = self._columns.caption
        if name is None:
            return None
        cells = self._column(name).to_pylist()
        texts = [list(cell) if isinstance(cell, list) else [cell] for cell in cells]
        for row, some in enumerate(texts):
            check_texts(some, f"the {name} in {self.named(row)}")
        return Captions.read(texts, self._text)

    @property
    def files(self) -> Sequence[Path]:
        """The files that the library keeps the rows in."""
        return [Path(file["filename"]) for file in self._rows.cache_files]

    def named(self, number: int) -> str:
        """The row by its number."""
        return f"row {number} of {self._rows.info.dataset_name or 'the data set'}"

    def encoded(self, number: int) -> Path | BytesIO:
        """The image of a row."""
        return content_of(self._rows[number][self._columns.image], self.named(number))

    @cached_property
    def _labels(self) -> Tensor | None:
        name = self._columns.label
        if name is None:
            return None
        column = self._column(name)
        if column.null_count:
            raise UserError(f"column {name!r} has {column.null_count} empty labels: fill them, or drop those rows")
        labels = torch.from_numpy(column.to_numpy().astype(np.int64))
        if labels.min() < 0:
            raise UserError(
                f"column {name!r} has the label {int(labels.min())}, but labels count from 0: renumber them"
            )
        return labels

    def _column(self, name: str) -> Any:
        """A column as an array of Arrow."""
        return self._rows.select_columns([name]).with_format("arrow")[:][name]


@contextmanager
def _understood(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of the library, of the hub, of pyarrow and of fsspec
        told = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(
            f"the data set {path} cannot be read ({told}): correct data.path, data.name and data.split; a private one "
            "needs `hf auth login`"
        ) from error
