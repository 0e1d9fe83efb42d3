"""One run per folder: a lock that says who holds it, and that no kill leaves behind.

The system holds it with an open file, so that it ends with its process, however that ends. What the file says of its
holder is for the next one: a name on this host whose lock is free is of a process that was killed; one of another host
may be of a run there, because not every network file system carries locks from host to host.
"""

import fcntl
import json
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from .disk import named
from .errors import UserError, say

_open: set[int] = set()


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, and since when."""

    pid: int
    host: str
    since: str

    @classmethod
    def here(cls) -> "Holder":
        """This process as a holder."""
        return cls(os.getpid(), platform.node(), datetime.now(UTC).isoformat(sep=" ", timespec="seconds"))

    @classmethod
    def read(cls, text: str) -> "Holder | None":
        """The holder that the text of a lock names; None for an empty or foreign file."""
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


@contextmanager
def held(folders: dict[Path, Path], *, take_over: bool = False) -> Iterator[None]:
    """Within, this process alone writes these folders.

    Args:
        folders: folder -> file of its lock, which is there while it is held.
        take_over: whether a lock that another host left is taken, because its run is known to be over.

    Raises:
        UserError: another run holds one of them, or may do so.
    """
    with ExitStack() as stack:
        for folder, file in folders.items():
            stack.enter_context(_held(folder, file, take_over=take_over))
        yield


@contextmanager
def _held(folder: Path, file: Path, *, take_over: bool) -> Iterator[None]:
    made = not file.parent.exists()
    descriptor = _acquired(file)
    if descriptor is None:
        raise UserError(
            f"{folder} is being written by another run ({_said_in(file) or 'which does not say who it is'}): wait for "
            "it, end it, or give another folder"
        )
    try:
        before = Holder.read(os.read(descriptor, 4096).decode(errors="replace"))
        if before is not None and before.host != platform.node() and not take_over:
            raise UserError(
                f"{folder} was being written by {before}, and this is {platform.node()}, which cannot see whether that "
                "run is over: if it is, say so with --take-over; otherwise give another folder"
            )
        if before is not None:
            say(f"{folder} was left behind by {before}, which is over: its lock is taken over")
        with named(file):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Holder.here())).encode(), 0)
    except BaseException:
        _close(descriptor)
        raise
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink()
            if made:
                file.parent.rmdir()  # which an empty folder alone allows
        _close(descriptor)


def holder_of(file: Path) -> Holder | None:
    """Who holds a lock now, which is not touched; where that cannot be seen, who is said to.

    A process of this host that is over, or whose number has gone to another one, holds nothing.
    """
    with suppress(OSError):
        holder = Holder.read(file.read_text(encoding="utf-8", errors="replace"))
        return None if holder is not None and _has_open(holder, file) is False else holder
    return None


def is_held_by(holder: Holder, file: Path) -> bool:
    """Whether it is certain that a process of this host holds a lock."""
    return _has_open(holder, file) is True


def _has_open(holder: Holder, file: Path) -> bool | None:
    """Whether a holder has the file open; None where that cannot be seen: on another host, or of another user."""
    if holder.host != platform.node():
        return None
    try:
        return any(os.path.samefile(one.path, file) for one in psutil.Process(holder.pid).open_files())
    except psutil.AccessDenied:
        return None
    except (psutil.Error, OSError, ValueError, TypeError):
        return False


def _acquired(file: Path) -> int | None:
    """An open file that this process alone has locked; None where another one has."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            _open.add(descriptor)
            if not _locks(descriptor):
                _close(descriptor)
                return None
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    return descriptor
            _close(descriptor)  # whoever held it has just taken it away
    except FileExistsError as error:
        raise UserError(f"the run goes to {file.parent}, which is a file: give a folder") from error
    except OSError as error:
        raise UserError(f"cannot write in {file.parent}: {error.strerror}; give a writable folder") from error


def _locks(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: what the file says must do
        return True
    return True


def _said_in(file: Path) -> str:
    with suppress(OSError):
        return str(Holder.read(file.read_text(encoding="utf-8", errors="replace")) or "")
    return ""


def _close(descriptor: int) -> None:
    _open.discard(descriptor)
    os.close(descriptor)


def _let_go() -> None:
    """Closes the locks in a forked process, which would otherwise still hold them after its parent was killed."""
    for descriptor in _open:
        os.close(descriptor)
    _open.clear()


os.register_at_fork(after_in_child=_let_go)
