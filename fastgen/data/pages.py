"""What a parquet file's pages become, told by the pages themselves: its footer may say less.

Footer and pages' headers are structs of Thrift's compact protocol, of which numbers by field are read here
(https://github.com/apache/parquet-format, parquet.thrift). PyArrow shows no headers of pages, and a footer without
what it looks for ends the process.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError
from ..limits import at_once, check_ratio

_ROW_GROUPS, _COLUMNS, _ABOUT = 4, 1, 3
"""Fields of the footer, of a row group and of a column in it."""
_PATH, _BYTES, _PAGES, _DICTIONARY = 3, 7, 9, 11
"""Fields of what is said about a column: its name, its bytes in the file, and where its pages and dictionary begin."""
_UNPACKED, _PACKED = 2, 3
"""Fields of a page's header."""
_TOGETHER = 2**16
"""Bytes that are read at once."""


def check_packing(file: Path, columns: Collection[str]) -> int:
    """How many rows of these columns can be unpacked at once in no more memory than any picture may take.

    Raises:
        UserError: they would become very many times the bytes of the file, as no pictures do, or it is damaged.
    """
    packed, size, largest = file.stat().st_size, 0, 0
    try:
        with file.open("rb") as opened:
            for page in _pages(_Content(opened), columns):
                size, largest = size + page, max(largest, page)
                check_ratio(size, packed, str(file))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read as a parquet file ({error}); it is damaged: write or download it again"
        ) from error
    return at_once(largest)


class _Content:
    """Parts of a file, read and not mapped: of a mapped file that becomes shorter meanwhile, reading ends the process.

    Attributes:
        size: of the file, in bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.size = file, os.fstat(file.fileno()).st_size
        self._start, self._held = 0, b""

    def part(self, start: int, count: int) -> bytes:
        """The bytes at a place.

        Raises:
            IndexError: they are not all there.
        """
        if not 0 <= start <= start + count <= self.size:
            raise IndexError("it ends too early")
        if not self._start <= start <= start + count <= self._start + len(self._held):
            self._file.seek(start)
            self._start, self._held = start, self._file.read(max(count, _TOGETHER))
        found = self._held[start - self._start :][:count]
        if len(found) < count:
            raise IndexError("it has become shorter")
        return found


def _pages(content: _Content, columns: Collection[str]) -> Iterator[int]:
    """Bytes that each page of the columns becomes."""
    footer = content.size - 8 - int.from_bytes(content.part(content.size - 8, 4), "little")
    for group in _Struct(content, footer).fields.get(_ROW_GROUPS, ()):
        for chunk in group[_COLUMNS]:
            about = chunk[_ABOUT]
            if about[_PATH][0].decode() in columns:
                first = min(about[_PAGES], about.get(_DICTIONARY) or about[_PAGES])
                yield from _of_column(content, first, first + about[_BYTES])


def _of_column(content: _Content, at: int, end: int) -> Iterator[int]:
    while at < end:
        header = _Struct(content, at)
        at = header.end + header.fields[_PACKED]
        if not header.end <= at <= end or header.fields[_UNPACKED] < 0:
            raise ValueError("a page does not lie in its column")
        yield header.fields[_UNPACKED]


class _Struct:
    """A struct of the compact protocol, its fields by number: whole numbers, bytes, lists and dicts.

    Args:
        content: what it stands in, and `at` where.

    Attributes:
        end: the byte after it.

    Raises:
        IndexError: the content ends before it does.
        ValueError: it is none.
    """

    def __init__(self, content: _Content, at: int) -> None:
        self._content, self.end = content, at
        self.fields = self._fields(depth=0)

    def _fields(self, depth: int) -> dict[int, Any]:
        if depth > 12:
            raise ValueError("nested too deeply")
        found: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            found[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth)
        return found

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 7:
            return self._bytes(8)
        if kind == 8:
            return self._bytes(self._varint())
        if kind in (9, 10):
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15, depth + 1) for _ in range(count)]
        if kind == 12:
            return self._fields(depth + 1)
        raise ValueError(f"a value of type {kind}")

    def _byte(self) -> int:
        return self._bytes(1)[0]

    def _bytes(self, count: int) -> bytes:
        start, self.end = self.end, self.end + count
        return self._content.part(start, count)

    def _varint(self) -> int:
        value = 0
        for place in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << place
            if byte < 128:
                return value
        raise ValueError("a number without an end")

    def _signed(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
