"""Rows that are read in order, a window at a time, and can be asked for by number nevertheless."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic_json, cache_folder
from ..limits import plain
from .captions import Captions
from .columns import Columns, content_of
from .texts import Texts

NOTED = 256  # places in a stream that are kept, at most: a resumed run reads on from the nearest
HELD = 2  # windows


class Stream:
    """Encoded images of a stream.

    Args:
        opened: the stream from its beginning, a data set of the library `datasets`.
        columns: what is read of a row.
        rows: how many count.
        window: rows that are read together.
        identity: what tells it from other streams.
        called: what messages call it.
    """

    files: Sequence[Path] = ()

    def __init__(
        self,
        opened: Callable[[], Any],
        columns: Columns,
        rows: int,
        window: int,
        identity: Sequence[str | None],
        *,
        called: str,
    ) -> None:
        self._columns, self._rows, self._window, self._called = columns, rows, window, called
        told = [name for name in (columns.label, columns.caption) if name]
        self._windows = Windows(opened, rows, window, [*identity, "all"])
        self._told = Windows(lambda: opened().select_columns(told), rows, window, [*identity, "told", *told])

    def __len__(self) -> int:
        return self._rows

    @property
    def num_classes(self) -> int | None:
        """The number of classes that the labels of the data set declare."""
        if self._columns.label is not None and self._columns.classes is None:
            raise UserError(
                f"column {self._columns.label!r} of {self._called} does not say how many classes there are, and a "
                "stream cannot be searched for that: bring the data here with data.streaming=false"
            )
        return self._columns.classes

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The labels of these rows."""
        name = self._columns.label
        return None if name is None else torch.tensor([self._row(number)[name] for number in numbers])

    @property
    def captions(self) -> Captions | None:
        """The texts of the rows, read when they are asked for: in order it is one pass."""
        return None if self._columns.caption is None else Captions(_Captions(self))

    def caption(self, number: int) -> str:
        """The text of a row, without its image where that has not been read."""
        row = self._windows.known(number) or self._told.row(number)
        cell = row[self._columns.caption or ""]
        text = cell[0] if isinstance(cell, list) and cell else cell
        if not isinstance(text, str):
            raise UserError(f"{self.named(number)} has no text as {self._columns.caption}: fill it, or drop the row")
        return plain(text, self.named(number))

    def encoded(self, number: int) -> Path | BytesIO:
        """The image of a row."""
        return content_of(self._row(number)[self._columns.image], self.named(number))

    def named(self, number: int) -> str:
        """The row by its number."""
        return f"row {number} of {self._called}"

    def _row(self, number: int) -> Any:
        return self._windows.row(number)


class Windows:
    """A stream in windows; asked for in order, each row is read once.

    Args:
        opened: the stream from its beginning.
        rows: how many count.
        window: rows of each.
        identity: what tells this stream from others.
    """

    def __init__(self, opened: Callable[[], Any], rows: int, window: int, identity: Sequence[str | None]) -> None:
        self._opened, self._rows, self._window = opened, rows, window
        digest = hashlib.sha256(repr((list(identity), window)).encode()).hexdigest()[:32]
        self._notes = cache_folder() / "streams" / digest
        self._stride = -(-rows // window // NOTED) or 1
        self._read = lru_cache(maxsize=HELD)(self._window_of)
        self._lock = Lock()
        self._held: tuple[int, ...] = ()
        self._next: tuple[int, Any, Iterator[Any]] | None = None

    def row(self, number: int) -> Any:
        """A row; raises UserError where the stream has fewer."""
        with self._lock:
            rows = self._read(number // self._window)
            self._held = (*self._held, number // self._window)[-HELD:]
        return rows[number % self._window]

    def known(self, number: int) -> Any | None:
        """A row of a window that was read last; None of another."""
        return self.row(number) if number // self._window in self._held else None

    def _window_of(self, index: int) -> list[Any]:
        wanted = min(self._window, self._rows - index * self._window)
        reached, stream, rows = self._next if self._next and self._next[0] <= index else self._from(index)
        self._next = None
        while True:
            found = list(islice(rows, wanted if reached == index else self._window))
            if reached == index:
                break
            reached += 1
        if len(found) < wanted:
            raise UserError(
                f"the stream ended after {index * self._window + len(found):,} rows, and {self._rows:,} were asked "
                "for: correct data.rows"
            )
        self._note(index + 1, stream)
        self._next = (index + 1, stream, rows)
        return found

    def _from(self, index: int) -> tuple[int, Any, Iterator[Any]]:
        """The nearest place at or before a window that can be read from, the stream, and what comes from there on."""
        stream = self._opened()
        for place in range(index // self._stride * self._stride, 0, -self._stride):
            with suppress(OSError, ValueError, KeyError, TypeError):
                stream.load_state_dict(json.loads(self._place(place).read_text(encoding="utf-8")))
                return place, stream, iter(stream)
        return 0, stream, iter(stream)

    def _note(self, index: int, stream: Any) -> None:
        if index % self._stride == 0 and not self._place(index).exists():
            with suppress(OSError, UserError, TypeError):  # without notes it is read from its beginning
                atomic_json(self._place(index), stream.state_dict())

    def _place(self, index: int) -> Path:
        return self._notes / f"{index}.json"


class _Captions(Texts):
    """The captions of a stream's rows."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def __len__(self) -> int:
        return len(self._stream)

    def text(self, number: int) -> str:
        return self._stream.caption(number)
