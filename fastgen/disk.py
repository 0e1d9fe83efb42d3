"""What a disk refuses, in words: looked for before anything is made, and named where it comes all the same."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT)
_NUMBER = re.compile(r"os error (\d+)")


def standing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def check_writable(folder: Path, setting: str) -> None:
    """Raises UserError where a folder cannot be made or written in; `setting` is how it was given."""
    if folder.parts[:1] == ("~",):
        raise UserError(f"{setting} is {folder}, and a ~ is not your home folder here: write that out")
    place = standing(folder)
    if not place.is_dir():
        where = "which" if place == folder.absolute() else f"but {place}"
        raise UserError(f"{setting} is {folder}, {where} is a file: give a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{setting} is {folder}, but nothing can be written in {place}: give another folder")


def require_space(path: Path, needed: int) -> None:
    """Raises OSError, as a full disk does, where so many bytes more do not fit beside a path."""
    free = shutil.disk_usage(standing(path)).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, of {needed:,} bytes that it needs", str(path))


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Within, an error of the disk names this path, also one that a library words in its own way.

    Raises:
        OSError: with the path as its `filename`.
        SafetensorError: of another kind.
    """
    try:
        yield
    except SafetensorError as error:
        found = _NUMBER.search(str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def explained(error: OSError) -> str:
    """A paragraph of an error of the disk: the file, what is free there, and the remedy."""
    if error.errno not in FULL or not error.filename:
        return f"{error}. Use --debug to see where."
    free = shutil.disk_usage(standing(Path(error.filename))).free
    return (
        f"{error.filename} could not be written: {error.strerror}; {free:,} are free there. What was there before is "
        "untouched: free some space, or give a place on a larger disk; a run goes on with --resume"
    )
