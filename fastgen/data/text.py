"""Text as people save it: with a byte order mark, CRLF, control characters, or not in UTF-8 at all."""

from pathlib import Path

from ..errors import UserError
from ..limits import Cap, plain, read_bytes


def read_lines(path: Path, *, blank: bool = False) -> list[str]:
    """The lines of a UTF-8 file without surrounding white space; blank ones are left out.

    Args:
        blank: lines are told apart by their numbers: blank ones are kept, but for those at the end.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8 or no plain text; it names the line.
    """
    raw_lines = read_bytes(path, Cap.TEXT).removeprefix(b"\xef\xbb\xbf").splitlines()
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
