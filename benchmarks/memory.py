"""Seconds and peaks of memory of a stage of work, on the host and on the device, those of child processes with them."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch

from .watches import GIB, peak, synchronise

EVERY = 0.02  # seconds between looks at the host's memory


@dataclass(frozen=True)
class Spent:
    """What a stage took.

    Attributes:
        seconds: wall-clock.
        before_gib: main memory at its start, as `host_gib`.
        host_gib: most main memory of the process that files do not back, so that it cannot be dropped and read again.
        files_gib: most main memory of it with files that are mapped.
        beside_gib: most main memory of its child processes, without mapped files.
        device_gib: most that this process had allocated on the device; None without a GPU.
        card_gib: most that was taken of the device by all processes, seen at the same moments.
    """

    seconds: float
    before_gib: float
    host_gib: float
    files_gib: float
    beside_gib: float
    device_gib: float | None
    card_gib: float | None


@dataclass
class Meter:
    """Stages by name, in their order, each measured once."""

    device: torch.device
    spent: dict[str, Spent] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What is done within."""
        synchronise(self.device)
        peak(self.device)
        before = resident(os.getpid())["RssAnon"] / GIB
        with _Looking(self.device) as looking:
            start = time.perf_counter()
            yield
            synchronise(self.device)
            seconds = time.perf_counter() - start
        most = looking.most
        card = most["card"] if self.device.type == "cuda" else None
        spent = Spent(seconds, before, most["own"], most["files"], most["beside"], peak(self.device), card)
        self.spent[name] = spent
        print(f"{name}: {seconds:.1f} s, {spent.host_gib:.2f} GiB of main memory", file=sys.stderr, flush=True)


class _Looking:
    """Within, a thread looks at the memory again and again."""

    def __init__(self, device: torch.device) -> None:
        self.most = dict.fromkeys(("own", "files", "beside", "card"), 0.0)
        self._device, self._over = device, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Looking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        over = False
        while not over:
            over = self._over.wait(EVERY)
            for name, value in self._now().items():
                self.most[name] = max(self.most[name], value / GIB)

    def _now(self) -> dict[str, float]:
        own = resident(os.getpid())
        beside = sum(resident(child.pid)["RssAnon"] for child in psutil.Process().children(recursive=True))
        seen = {"own": own["RssAnon"], "files": own["RssAnon"] + own["RssFile"], "beside": beside}
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            seen["card"] = total - free
        return seen


def resident(pid: int) -> dict[str, float]:
    """Main memory of a process in bytes, of its own (RssAnon) and of mapped files (RssFile); 0 of one that is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    sizes = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return {name: 1024.0 * int(sizes.get(name, ["0"])[0]) for name in ("RssAnon", "RssFile")}
