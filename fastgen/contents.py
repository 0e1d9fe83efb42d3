"""What files hold, by hashes: of each one, remembered until it is written again, or of many together."""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from .errors import UserError
from .files import atomic_json, cache_folder, sha256_file

CHEAP = 2**28  # bytes of many files up to which all of them are read
ENDS, MOST_ENDS = 2**16, 4096  # beyond it bytes at the start and end of each, and files of which these are read
_FRESH_S = 2.0  # a file as young may be written again within the same tick of its clock
_AT_ONCE = 4
_BLOB = re.compile(r"[0-9a-f]{64}")


def hashes_of(files: Iterable[Path]) -> list[str]:
    """The SHA-256 of each file.

    It is computed once: the folder of what is kept between runs remembers it with the file's size and the times of its
    last change. What the hub's cache names by its hash is not read at all.
    """
    with ThreadPoolExecutor(_AT_ONCE, "fastgen-hashes") as pool:
        return list(pool.map(_hash_of, files))


def _hash_of(file: Path) -> str:
    real, state = file.resolve(), file.stat()
    if real.parent.name == "blobs" and _BLOB.fullmatch(real.name):
        return real.name
    noted = cache_folder() / "sha256" / f"{hashlib.sha256(str(real).encode()).hexdigest()[:32]}.json"
    seen = [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
    with suppress(OSError, ValueError, TypeError, KeyError):
        known = json.loads(noted.read_text(encoding="utf-8"))
        if known["seen"] == seen:
            return str(known["sha256"])
    found = sha256_file(file)
    if time.time() - max(state.st_mtime, state.st_ctime) > _FRESH_S:
        with suppress(OSError, UserError):  # where nothing can be kept it is computed again
            atomic_json(noted, {"file": str(real), "seen": seen, "sha256": found})
    return found


def contents_of(files: Sequence[Path], root: Path) -> dict[str, str]:
    """Many files as one: how many, how large, and a hash of their names below `root`, their sizes and their contents.

    All bytes of up to 256 MB are read. Beyond, the first and last 64 KiB of each file; of more than 4,096 files none.
    """
    sizes = [file.stat().st_size for file in files]
    total, digest = sum(sizes), hashlib.sha256()
    for file, size in zip(files, sizes, strict=True):
        name = file.relative_to(root) if file.is_relative_to(root) else Path(file.name)
        digest.update(f"{name.as_posix()}\0{size}\n".encode("utf-8", "surrogateescape"))
        if total <= CHEAP or len(files) <= MOST_ENDS:
            digest.update(_read(file, size, whole=total <= CHEAP))
    return {"files": f"{len(files):,}", "bytes": f"{total:,}", "sha256": digest.hexdigest()}


def _read(file: Path, size: int, *, whole: bool) -> bytes:
    with file.open("rb") as content:
        if whole or size <= 2 * ENDS:
            return content.read()
        start = content.read(ENDS)
        content.seek(-ENDS, 2)
        return start + content.read(ENDS)
