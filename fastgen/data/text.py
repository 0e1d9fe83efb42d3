"""Text as people save it: with a byte order mark, CRLF, control characters, or not in UTF-8 at all."""

import mmap
from array import array
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..limits import Cap, plain, read_bytes
from .kept import kept_array
from .texts import Texts

HELD = 2**24  # bytes up to which a file's lines are held in memory
LONGEST = 2**20  # most bytes of a line
_MARK = b"\xef\xbb\xbf"


def read_lines(path: Path, *, blank: bool = False) -> list[str]:
    """The lines of a UTF-8 file without surrounding white space; blank ones are left out.

    Args:
        blank: lines are told apart by their numbers: blank ones are kept, but for those at the end.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8 or no plain text; it names the line.
    """
    raw_lines = read_bytes(path, Cap.TEXT).removeprefix(_MARK).splitlines()
    lines = (_line(raw, f"{path}, line {number}") for number, raw in enumerate(raw_lines, start=1))
    if not blank:
        return [line for line in lines if line]
    kept = list(lines)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _line(raw: bytes, where: str) -> str:
    try:
        line = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte 0x{raw[error.start]:02x} is not valid UTF-8; save the file as UTF-8 text"
        ) from error
    return plain(line, where)


class Lines(Texts):
    """The lines of a large UTF-8 file that are not blank, read when they are asked for: none is held.

    Where each begins is found once, all of them are looked at then, and is kept between runs.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8, no plain text or very long; it names the line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts = kept_array("lines", [path], self._read)
        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._starts)

    def text(self, number: int) -> str:
        self._content.seek(int(self._starts[number]))
        return _line(self._content.readline(), f"{self._path}, prompt {number + 1}")

    def _read(self) -> NDArray[np.int64]:
        starts, place = array("q"), 0
        with self._path.open("rb") as file:
            for number, raw in enumerate(iter(lambda: file.readline(LONGEST + 1), b""), start=1):
                where = f"{self._path}, line {number}"
                if len(raw) > LONGEST:
                    raise UserError(f"{where} has more than {LONGEST:,} bytes: is it a file of prompts?")
                skipped = len(_MARK) if number == 1 and raw.startswith(_MARK) else 0
                if _line(raw[skipped:], where):
                    starts.append(place + skipped)
                place += len(raw)
        return np.frombuffer(starts, np.int64) if starts else np.empty(0, np.int64)
