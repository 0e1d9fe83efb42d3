"""Atomic files and folders: complete under their name, or not there at all.

Everything is built in a hidden sibling whose name carries its maker (host, process id, time), flushed to
the disk and renamed into place. A run that dies leaves at most such siblings, and the next call in that
folder tidies them: unfinished ones are deleted, a folder that was moved aside for its successor is put back.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from .disk import FULL, named
from .errors import UserError

_SIBLING = re.compile(r"\.(?P<target>.+)\.(?P<host>[\w-]+)\.(?P<pid>\d+)\.(?P<born_ns>\d+)\.(?P<kind>tmp|old)")
_CLOCK_SLACK_S = 2.0  # process start times are only good to a second
_PATIENCE_S = {"tmp": 86_400.0, "old": 10.0}  # how long those of another host are left, whose processes cannot be seen


@dataclass(frozen=True)
class _Sibling:
    """A hidden neighbour of `target`: "tmp" while it is being written, "old" while its successor moves in."""

    target: Path
    host: str
    pid: int
    born_ns: int
    kind: str

    @classmethod
    def of(cls, target: Path, kind: str) -> Self:
        return cls(target, _host(), os.getpid(), time.time_ns(), kind)

    @classmethod
    def parse(cls, path: Path) -> Self | None:
        match = _SIBLING.fullmatch(path.name)
        if match is None:
            return None
        target = path.with_name(match["target"])
        return cls(target, match["host"], int(match["pid"]), int(match["born_ns"]), match["kind"])

    @property
    def path(self) -> Path:
        return self.target.with_name(f".{self.target.name}.{self.host}.{self.pid}.{self.born_ns}.{self.kind}")

    def abandoned(self) -> bool:
        """Whether its maker is dead: gone, a zombie, or a younger process that was given the same id."""
        born = self.born_ns / 1e9
        if self.host != _host():
            return time.time() - born > _PATIENCE_S[self.kind]
        try:
            process = psutil.Process(self.pid)
            started: float = process.create_time()
            zombie: bool = process.status() == psutil.STATUS_ZOMBIE
            return zombie or started > born + _CLOCK_SLACK_S
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False


def atomic_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is either the old one or the whole new one, also after a power cut.

    Raises:
        UserError: the folder cannot be created or `path` is a folder.
        OSError: the disk refuses; the old file is untouched.
    """
    if path.is_dir():
        raise UserError(f"{path} is a folder, but a file is to be written there; give another path or move it")
    with atomic_file(path) as temporary, temporary.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path to write a file at; it appears as `path`, flushed to the disk, when the block ends well.

    An exception in the block deletes what was written and leaves `path` as it was. Of several writers, on one host or
    on several, the last one's file stays.

    Raises:
        UserError: the folder cannot be created.
        OSError: the disk refuses; what was at `path` is untouched.
    """
    path = _prepare(path)
    temporary = _Sibling.of(path, "tmp").path
    try:
        with named(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def atomic_json(path: Path, value: Any) -> None:
    """Write `value` as strict JSON (ASCII, no NaN or infinity) with `atomic_text`.

    Raises:
        ValueError, TypeError: JSON cannot hold the value; nothing is written.
    """
    atomic_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it appears as `path`, flushed to the disk, when the block ends well.

    An exception in the block deletes what was written and leaves `path` as it was. With `replace` a folder
    that is already there is moved aside at the end and deleted after the new one stands. A kill between the
    two renames leaves it aside; the next `atomic_folder` or `tidy` there puts it back. One writer per path.
    Files get the mode that the umask gives, whatever the libraries that wrote them chose.

    Raises:
        UserError: `path` is a file, holds files and `replace` is false, or its parent cannot be created.
        OSError: the disk refuses; what was at `path` is untouched.
    """
    path = _prepare(path)
    _refuse_occupied(path, replace=replace)
    temporary = _Sibling.of(path, "tmp").path
    temporary.mkdir()
    try:
        with named(path):
            yield temporary
            mode = temporary.stat().st_mode & 0o666  # of a new file under this process's umask
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(mode)  # safetensors makes files that only their owner can read
                _sync(file)
            _sync(temporary)
            _install(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in FULL:
            written = sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file())
            error.strerror = f"{error.strerror} after {written:,} bytes" if written else error.strerror
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def cache_folder() -> Path:
    """What is kept between runs on this machine: $FASTGEN_CACHE, else ~/.cache/fastgen."""
    return Path(os.environ.get("FASTGEN_CACHE") or Path.home() / ".cache" / "fastgen")


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_folder(path: Path) -> None:
    """Delete a folder such that a kill halfway leaves no partial one under its name."""
    doomed = _Sibling.of(path, "tmp").path
    os.rename(path, doomed)
    shutil.rmtree(doomed)


def tidy(folder: Path) -> None:
    """Finish in `folder` what dead runs left: put back what was moved aside, delete temporaries.

    Siblings whose maker still runs are left alone, several processes may tidy at once, and what the disk
    refuses (a read-only folder) stays.
    """
    siblings = [sibling for path in folder.iterdir() if (sibling := _Sibling.parse(path))]
    for sibling in siblings:
        if not sibling.abandoned():
            continue
        with suppress(OSError):
            if sibling.kind == "old" and not sibling.target.exists():
                os.rename(sibling.path, sibling.target)
            elif sibling.path.is_dir():
                shutil.rmtree(sibling.path)
            else:
                sibling.path.unlink()


def _host() -> str:
    return re.sub(r"[^\w-]", "-", platform.node().partition(".")[0]) or "unknown"


def _prepare(path: Path) -> Path:
    """The real path behind links, in a folder that exists and is tidy."""
    path = path.resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write in {path.parent}: {error.strerror}; give a path below a writable folder"
        ) from error
    return path


def _refuse_occupied(path: Path, *, replace: bool) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, but a folder is to be written there; give another path or move it")
    if not replace and path.is_dir() and any(path.iterdir()):
        raise UserError(f"{path} already holds files and would be overwritten; give another path or remove it")


def _install(temporary: Path, path: Path) -> None:
    """Rename a finished folder into place, moving what stands there aside until it is done."""
    if not path.exists():
        os.rename(temporary, path)
        _sync(path.parent)
        return
    aside = _Sibling.of(path, "old").path
    os.rename(path, aside)
    try:
        os.rename(temporary, path)
    except BaseException:
        os.rename(aside, path)
        raise
    _sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file's bytes or a folder's names to the disk (Windows has no such call for a folder)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
