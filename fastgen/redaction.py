"""Secrets are not shown: what stands before the @ of an address, what the environment keeps under such a name."""

import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

HIDDEN = "***"
_SECRET = re.compile(r"(?:^|_)(?:TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|(?:API|ACCESS|PRIVATE|SECRET)_?KEY)$", re.I)
_SHORTEST = 8  # letters of a secret: shorter values are words such as "false"
_USER = re.compile(r"(?<=://)[^\s/@]+(?=@)")
_QUERY = re.compile(r"(?<=[?&])((?:\w*token|\w*key|password|secret|signature)=)[^&\s'\"]+", re.I)
_MARKDOWN = re.compile(r"([\\`*\[\]<>|&~$#])")
_HUB = re.compile(r"\bhf_[A-Za-z0-9]{16,}")


def redacted(text: str) -> str:
    """The text without the secrets of addresses and of this process's environment."""
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST and value in text and _SECRET.search(name):
            text = text.replace(value, HIDDEN)
    return _HUB.sub(HIDDEN, _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(HIDDEN, text)))


def plain_markdown(text: str) -> str:
    """The text in a line of Markdown, without secrets and without any meaning there."""
    return _MARKDOWN.sub(r"\\\1", "".join(c if c.isprintable() else " " for c in redacted(text)))


def within(value: Any) -> Any:
    """A JSON value without the secrets that `redacted` finds in its texts."""
    if isinstance(value, str):
        return redacted(value)
    if isinstance(value, dict):
        return {name: within(inner) for name, inner in value.items()}
    return [within(inner) for inner in value] if isinstance(value, list) else value


@contextmanager
def private() -> Iterator[None]:
    """Within, nothing that is printed shows a secret, and characters that the terminal does not have are escaped.

    Nor does the trace of an error that ends the program, which is printed after the block.
    """
    sys.excepthook = _traced
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _Shown(before[0]), _Shown(before[1])
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def _traced(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _Shown(sys.stderr).writelines(traceback.format_exception(kind, error, trace))


class _Shown:
    """A stream that is written to in such words."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        return self._stream.write(redacted(text).encode(encoding, "backslashreplace").decode(encoding))

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
