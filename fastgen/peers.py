"""Processes of one run that look after each other: what ends one of them ends all, and all say why.

Each process has a thread that speaks with the others through the store by which they met, beside all that they send
each other for training. Twice a second it says that its process lives, looks whether the next one in the ring does,
and listens for the ending of any. So one that failed is heard by those that wait for it in a collective, which no
exception reaches, and one that was killed or hangs is missed.
"""

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count
from threading import Event, Thread

import psutil
import torch.distributed as dist

from . import stopping
from .errors import ExitCode, PeerError, UserError
from .stopping import Stopped

BEAT_S = 0.5
MISSED = 8  # beats after which a peer counts as lost once its connection broke
GRACE_S = 2.0  # for the main thread to end by itself
HEARD_S = 3.0  # for the others to hear of an end from the process that may hold the store

_runs = count()  # all processes begin the same runs in the same order


@dataclass(frozen=True)
class Ending:
    """How a process ended, as it tells the others.

    Attributes:
        text: what happened to the process, in words that follow its name.
        exit_code: of the process, and so of all.
        signal: that stopped it; None for an error.
    """

    text: str
    exit_code: int
    signal: int | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Ending":
        """An error's."""
        if isinstance(error, Stopped):
            return cls(str(error), error.exit_code, error.number)
        code = error.exit_code if isinstance(error, UserError) else ExitCode.FAULT
        return cls(f"stopped: {type(error).__name__}: {error}", code)

    def error(self, who: str) -> UserError | Stopped:
        """What it is to the others."""
        if self.signal is not None:
            return Stopped(self.signal)
        return PeerError(f"{who} {self.text}", self.exit_code)


@dataclass(frozen=True)
class Peer:
    """A process among those of a run; `space` is where its number means something."""

    rank: int
    host: str
    pid: int
    space: str

    @classmethod
    def here(cls, rank: int) -> "Peer":
        """This process as a peer."""
        space = "/proc/self/ns/pid"
        return cls(rank, platform.node(), os.getpid(), os.readlink(space) if os.path.islink(space) else "")

    def gone(self, here: "Peer") -> bool:
        """Whether it is known to have ended, which is seen on its own host alone."""
        if (self.host, self.space) != (here.host, here.space):
            return False
        try:
            return bool(psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.AccessDenied:
            return False

    def __str__(self) -> str:
        return f"process {self.rank} (pid {self.pid} on {self.host})"


def quiet_nccl() -> None:
    """Leaves it to the threads of this module to miss a process, unless the environment says otherwise.

    NCCL's own monitor asks the store, and where the process that holds it has left first, it prints a trace.
    """
    os.environ.setdefault("TORCH_NCCL_ENABLE_MONITORING", "0")


@contextmanager
def together(patience_s: float) -> Iterator[None]:
    """Within, what ends one process ends all of them, with the same words and exit code.

    Args:
        patience_s: seconds without a sign of life after which a process counts as lost.

    Raises:
        PeerError: another process failed, or was lost, whatever this one's error is then.
        Stopped: another process was stopped by a signal.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    watch = _Watch(patience_s)
    try:
        yield
        watch.say_done()
    except BaseException as error:
        verdict = watch.verdict_on(error)
        if verdict is error:
            raise
        raise verdict from None
    finally:
        watch.over.set()


class _Watch:
    """What this process tells the others and hears of them, in a thread; a second one minds that the first goes on.

    Args:
        patience_s: as of `together`.
    """

    def __init__(self, patience_s: float) -> None:
        self.over = Event()
        self._patience_s, self._rank, self._count = patience_s, dist.get_rank(), dist.get_world_size()
        store = dist.distributed_c10d._get_default_store()
        self._main, self._store = store.clone(), store.clone()  # each a conversation of its own
        self._name = f"fastgen/{next(_runs)}"
        self._me = Peer.here(self._rank)
        self._heard = Event()
        self._ending: tuple[str, Ending] | None = None
        self._leaving = False  # the main thread is on its way out
        self._beats = 0
        self._main.set(f"{self._name}/who/{self._rank}", json.dumps(asdict(self._me)))
        for work in (self._talk, self._mind):
            Thread(target=work, name="fastgen-peers", daemon=True).start()

    def say_done(self) -> None:
        """Nobody is missed from now on."""
        with suppress(RuntimeError):
            self._main.set(f"{self._name}/done", "1")

    def verdict_on(self, error: BaseException) -> BaseException:
        """What an error here is due to: itself, or what ended another process before."""
        ours = isinstance(error, (UserError, Stopped))
        if not ours:  # a connection broke, perhaps: who broke it is heard, or missed, in a moment
            self._patience_s = min(self._patience_s, MISSED * BEAT_S)
            self._heard.wait((MISSED + 4) * BEAT_S)
        if self._ending is not None and not ours:
            return self._ending[1].error(self._ending[0])
        self._leaving = True
        with suppress(RuntimeError):
            self._tell(self._main, self._me, Ending.of(error))
            if self._rank == 0:  # whose end may be the store's
                self._wait_until_heard()
        return error

    def _wait_until_heard(self) -> None:
        for _ in range(int(HEARD_S / 0.1)):
            if self._main.add(f"{self._name}/heard", 0) >= self._count - 1 or self.over.wait(0.1):
                return

    def _tell(self, store: dist.Store, who: Peer, ending: Ending) -> None:
        """The first ending is everybody's."""
        store.compare_set(f"{self._name}/ended", "", json.dumps([str(who), self._rank, asdict(ending)]))

    def _talk(self) -> None:
        neighbour, last, missed, unanswered = (self._rank + 1) % self._count, b"", 0, 0
        who: Peer | None = None
        try:
            while not self.over.wait(BEAT_S):
                self._beats += 1
                self._store.set(f"{self._name}/alive/{self._rank}", str(self._beats))
                if self._store.check([f"{self._name}/ended"]):
                    return self._end(*self._read())
                if self._store.check([f"{self._name}/done"]):
                    continue
                unanswered = unanswered + 1 if stopping.unanswered() else 0
                if unanswered * BEAT_S >= GRACE_S:
                    self._tell(self._store, self._me, Ending.of(Stopped(stopping.stop_signal() or 0)))
                if who is None and not self._store.check([f"{self._name}/who/{neighbour}"]):
                    continue  # it is not here yet
                who = who or Peer(**json.loads(self._store.get(f"{self._name}/who/{neighbour}")))
                beats = f"{self._name}/alive/{neighbour}"
                beat = self._store.get(beats) if self._store.check([beats]) else b""  # one may end before its first
                missed, last = (0 if beat != last else missed + 1), beat
                if who.gone(self._me):
                    self._tell(self._store, who, _lost("was killed, perhaps for lack of memory"))
                elif missed * BEAT_S >= self._patience_s:
                    self._tell(self._store, who, _lost(f"has not answered for {missed * BEAT_S:.0f} s"))
        except RuntimeError as error:  # of the store, whose process is gone
            self._end("the process that the others meet at", _lost(f"is gone ({str(error).splitlines()[0]})"))

    def _read(self) -> tuple[str, Ending]:
        """Reads who ended first, and how; tells the first process that it was read."""
        who, teller, told = json.loads(self._store.get(f"{self._name}/ended"))
        if teller != self._rank:
            self._store.add(f"{self._name}/heard", 1)
        return who, Ending(**told)

    def _mind(self) -> None:
        """The store's process may be the one that hangs, and then nobody answers at all."""
        last, missed = 0, 0
        while not self.over.wait(BEAT_S):
            missed, last = (0 if self._beats != last else missed + 1), self._beats
            if missed * BEAT_S >= self._patience_s:
                lost = _lost(f"has not answered for {missed * BEAT_S:.0f} s")
                return self._end("the process that the others meet at", lost)

    def _end(self, who: str, ending: Ending) -> None:
        """Ends this process, which by itself may wait for another one for ever."""
        self._ending = (who, ending)
        self._heard.set()
        if not self.over.wait(GRACE_S) and not self._leaving:
            stopping.exit_at_once(f"{who} {ending.text}", ending.exit_code)


def _lost(how: str) -> Ending:
    return Ending(how, ExitCode.SILENT)
