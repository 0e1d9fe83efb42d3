"""Text files as people save them: with a byte order mark, CRLF, stray NULs, or not UTF-8 at all."""

from pathlib import Path

from ..errors import UserError


def read_lines(path: Path, *, blank: bool = False) -> list[str]:
    """The lines of a UTF-8 file without surrounding white space; blank ones are left out.

    Args:
        blank: lines are told apart by their numbers: blank ones are kept, but for those at the end.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8 or contains NUL; it names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"text file {path} cannot be read ({error.strerror}); give the path of a readable text file"
        ) from error
    raw_lines = content.removeprefix(b"\xef\xbb\xbf").splitlines()
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
    if "\0" in line:
        raise UserError(
            f"{where}: the line contains a NUL character, which no tokenizer accepts; remove it, or save the "
            "file as UTF-8 text if it was saved as UTF-16"
        )
    return line
