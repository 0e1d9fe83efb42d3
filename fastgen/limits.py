"""What is taken of what comes from elsewhere: one table of caps, asked before anything is decoded, and plain text."""

import json
import re
from enum import Enum
from pathlib import Path
from typing import Any

from .errors import UserError

RATIO = 200
"""Bytes that one byte of a file may become; photographs become 5 to 50, and bombs a thousand."""
SMALL = 2**26
"""Bytes that a file may become in any case: a plain picture of 4096 x 4096 pixels is no bomb."""

NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")
"""Control characters but for tabs and line ends, and halves of characters."""


class Cap(Enum):
    """The most that is taken of one thing: how much, of what unit, what the thing is called, and the remedy."""

    CONFIG = (200_000, "bytes", "a config", "is it another file?")
    JSON = (2**28, "bytes", "a JSON file", "is it another file?")
    TEXT = (2**28, "bytes", "a text file", "is it another file?")
    IMAGE = (2**28, "bytes", "an image file", "is it one?")
    PIXELS = (80_000_000, "pixels", "an image", "make it smaller")
    FRAMES = (2**32, "pixels before its middle", "an animation", "make it shorter or smaller")
    NUMBER = (64, "bytes", "a file with one number", "is it another file?")
    NAME = (2**16, "bytes", "the header of an archive's member", "pack the archive anew")
    ARRAY = (2**30, "bytes", "an array of statistics", "is it another file?")
    COLUMN = (2**31, "bytes", "a column that is held in memory", "split the file")

    @property
    def most(self) -> int:
        """How much."""
        return self.value[0]

    def check(self, size: int, where: str) -> None:
        """Raises UserError where `where` has more than this."""
        if size > self.most:
            _, unit, what, remedy = self.value
            raise UserError(f"{where} has {size:,} {unit}, {what} at most {self.most:,}: {remedy}")


def check_ratio(size: int, packed: int, where: str) -> None:
    """Raises UserError for `packed` bytes that would become `size`, as only a bomb does."""
    if size > max(SMALL, RATIO * packed):
        raise UserError(
            f"{where} has {packed:,} bytes that would become {size:,}, more than {RATIO} times as many, which no data "
            "do: take it out, or save it anew"
        )


def at_once(size: int) -> int:
    """How many things of at most so many bytes are unpacked at once: no more than any file may become, but one."""
    return max(1, SMALL // max(1, size))


def read_bytes(path: Path, cap: Cap) -> bytes:
    """A file's content, or that of a pipe; of an endless one no more than the cap is read.

    Raises:
        UserError: it cannot be read, or holds more.
    """
    try:
        with path.open("rb") as file:
            content = file.read(cap.most + 1)
    except (OSError, ValueError) as error:  # a ValueError of a path with NUL
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(content) > cap.most:
        cap.check(max(path.stat().st_size, len(content)), str(path))
    return content


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        UserError: it cannot be read, holds more than the cap, or no JSON.
    """
    return parsed(read_bytes(path, Cap.JSON), str(path))


def parsed(content: bytes, where: str) -> Any:
    """The value of a JSON text; raises UserError, which says `where` it stands, for another text."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({_line(error)}): copy or download it again") from error


def plain(text: str, where: str) -> str:
    """The text, which no terminal, tokenizer or file takes for anything else.

    Raises:
        UserError: it holds a control character or half a character; it says `where`.
    """
    if found := NO_TEXT.search(text):
        half = "half of a character" if "\ud800" <= found[0] <= "\udfff" else "a control character"
        hint = ", or save the file as UTF-8 text if it was saved as UTF-16" if found[0] == "\0" else ""
        raise UserError(
            f"{where} holds {half}, U+{ord(found[0]):04X}, at place {found.start() + 1}, which is no text: remove "
            f"it{hint}"
        )
    return text


def _line(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
