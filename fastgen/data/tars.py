"""Members of tar files, whose headers are read within caps."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..limits import Cap

_HEADERS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def members(shard: Path, mode: Literal["r", "r:"] = "r") -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The files in a tar file, in their order.

    Args:
        shard: the tar file.
        mode: r of any compression; r: of none, whose members lie at `offset_data`.

    Raises:
        UserError: it cannot be read, or a header is none.
    """
    try:
        with tarfile.open(shard, mode, tarinfo=_Member) as archive:
            for member in archive:
                if member.isfile() and not member.issparse():
                    yield archive, member
                archive.members = []  # type: ignore[attr-defined]  # it would remember them all
    except UserError:
        raise
    except Exception as error:  # OSError, EOFError, TarError, zlib.error, ValueError ... of damaged bytes
        packed = "; only shards that are not compressed can be read from any place" if mode == "r:" else ""
        raise UserError(f"{shard} cannot be read as a tar shard ({error}){packed}; copy it again") from error


class _Member(tarfile.TarInfo):
    """A member whose header, which is read into memory as it is met, is one."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Member":
        member = super().frombuf(buf, encoding, errors)
        if member.type in _HEADERS:
            Cap.NAME.check(member.size, "a member")
        return member
