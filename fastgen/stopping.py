"""Signals that ask a command to stop: the first one is answered where nothing is lost, a second one at once.

SIGINT is Ctrl-C, SIGTERM what schedulers end a process with, SIGUSR1 what Slurm is asked to send before that. Where
nothing could be lost, the first raises `Stopped` wherever the main thread stands; within `deferred` it waits to be
asked for. A thread hears signals too, because the main one may stand in a call that none of them ends: it leaves the
process at a second signal, and where the first one is not answered.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Thread, current_thread, main_thread
from typing import Any, NoReturn, TypeVar

from .errors import AFTER_SIGNAL

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
GRACE_S = 20.0
ECHO_S = 1.0  # in which a launcher repeats to its processes what their group was told


Value = TypeVar("Value")


class Stopped(KeyboardInterrupt):
    """A signal asks this command to stop.

    Args:
        number: the signal.
        kept: what was done about the work so far, in words.
    """

    def __init__(self, number: int, kept: str = "") -> None:
        super().__init__(number, kept)
        self.number, self.kept = number, kept

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}" + (f": {self.kept}" if self.kept else "")

    @property
    def exit_code(self) -> int:
        return AFTER_SIGNAL + self.number


@dataclass
class _Ears:
    """What this process has heard. `deferring` and `handled` are the main thread's."""

    last_words: str
    grace_s: float
    number: int | None = None
    deferring: bool = False
    handled: bool = False
    line: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)

    def handle(self, number: int, frame: Any) -> None:
        """Handles a signal in the main thread, between two of its instructions."""
        if not self.handled:  # another would break into what the first one has begun to tidy
            self.handled, self.number = True, self.number or number
            self.answer()

    def answer(self) -> None:
        """Raises Stopped where a signal was heard and is not deferred."""
        if self.number is not None and not self.deferring:
            raise Stopped(self.number)

    def listen(self) -> None:
        """Listens in a thread, where every signal comes in as a byte whatever the main thread does."""
        first: float | None = None
        patience = self.grace_s
        while True:
            before = time.monotonic()
            ready, _, _ = select.select([self.line[0]], [], [], None if first is None else 0.1)
            heard = self.line[0].recv(64) if ready else b""
            if ready and not heard:
                return  # nobody listens any more
            for number in filter(SIGNALS.__contains__, heard):
                if first is None:
                    first, self.number = time.monotonic(), number
                elif time.monotonic() - first > ECHO_S:
                    exit_at_once("told twice to stop", AFTER_SIGNAL + number)
            if first is not None and not heard:
                patience = self.grace_s if self.deferring else patience - (time.monotonic() - before)
            if patience <= 0 and self.number is not None:
                exit_at_once(f"not over {self.grace_s:.0f} s after it was told to stop", AFTER_SIGNAL + self.number)


_ears: _Ears | None = None


@contextmanager
def listening(last_words: str = "", *, grace_s: float = GRACE_S) -> Iterator[None]:
    """Within, in the main thread, signals are heard; those that were ignored still are.

    Args:
        last_words: said on stderr where the process is left without further ado.
        grace_s: for what does not defer a signal, after which the process is left.
    """
    global _ears
    if current_thread() is not main_thread() or _ears is not None:
        yield
        return
    _ears = ears = _Ears(last_words, grace_s)
    for end in ears.line:
        end.setblocking(False)
    woken = signal.set_wakeup_fd(ears.line[1].fileno(), warn_on_full_buffer=False)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, ears.handle)
    Thread(target=ears.listen, name="fastgen-signals", daemon=True).start()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(woken)
        ears.line[1].close()
        _ears = None


def stop_signal() -> int | None:
    """The signal that this process was told to stop by, if any."""
    return None if _ears is None else _ears.number


def unanswered() -> bool:
    """Whether a signal was heard that is not deferred: the main thread has yet to end, if it can."""
    return _ears is not None and _ears.number is not None and not _ears.deferring


def exit_at_once(why: str, code: int) -> NoReturn:
    """Ends the process, whatever call its main thread is in."""
    hint = _ears.last_words if _ears is not None and os.environ.get("RANK", "0") == "0" else ""
    with suppress(OSError):
        os.write(2, f"fastgen: {why}: left at once\n{hint}".encode())
    os._exit(code)


@contextmanager
def deferred() -> Iterator[None]:
    """Within, nothing is raised: whoever may stop asks for `stop_signal` where nothing is lost."""
    with _deferring(True):
        yield


@contextmanager
def at_once() -> Iterator[None]:
    """Within, also within `deferred`, a signal raises `Stopped`; one that was heard before does at the start."""
    with _deferring(False):
        yield


def interruptible(work: Callable[[], Value]) -> Callable[[], Value]:
    """The work, during which a signal raises `Stopped`, see `at_once`."""

    def done() -> Value:
        with at_once():
            return work()

    return done


@contextmanager
def _deferring(deferring: bool) -> Iterator[None]:
    ears = _ears
    if ears is None or current_thread() is not main_thread():
        yield
        return
    before, ears.deferring = ears.deferring, deferring
    try:
        ears.answer()
        yield
    finally:
        ears.deferring = before
    ears.answer()


def _leave_to_the_parent() -> None:
    """Stops listening in a forked process, which shares the line: its parent decides when it ends."""
    if _ears is not None:
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)


os.register_at_fork(after_in_child=_leave_to_the_parent)
