"""Text files as people save them: with a byte order mark, CRLF, stray NULs, or not UTF-8 at all."""

from pathlib import Path

from fastgen.errors import UserError


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file without surrounding white space; blank lines are left out.

    Raises:
        UserError: the file cannot be read, or a line is not UTF-8 or contains NUL; it names the line.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"Text file {path} cannot be read ({error.strerror}); give the path of a readable text file."
        ) from error
    raw_lines = content.removeprefix(b"\xef\xbb\xbf").splitlines()
    lines = (_line(raw, f"{path}, line {number}") for number, raw in enumerate(raw_lines, start=1))
    return [line for line in lines if line]


def _line(raw: bytes, where: str) -> str:
    try:
        line = raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}: byte 0x{raw[error.start]:02x} is not valid UTF-8; save the file as UTF-8 text."
        ) from error
    if "\0" in line:
        raise UserError(
            f"{where}: the line contains a NUL character, which no tokenizer accepts; remove it, or save the "
            "file as UTF-8 text if it was saved as UTF-16."
        )
    return line
