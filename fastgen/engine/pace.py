"""How fast a run is and what it holds: figures of this machine and moment, which no two runs of a config share."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil
import torch

from .progress import Position

GIB = 2**30
KNOWN_S = 5.0
"""Seconds of cycles after the first one, which compiles and allocates, from which a duration is foretold."""


@dataclass
class Pace:
    """The pace of one stage.

    Args:
        device: of the networks, whose memory is told; on a CPU that of this process.
        position: where the stage stands; it moves on.
        waited: seconds so far that training waited for data.
    """

    device: torch.device
    position: Position
    waited: Callable[[], float] = lambda: 0.0
    _last: tuple[float, int, int, float] = field(init=False)
    _first: tuple[float, int] | None = field(init=False, default=None)
    _told: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self._last = self._now()

    def figures(self) -> dict[str, float]:
        """Figures of the cycles since the last call: unix time, seconds so far and of a cycle, images/s, GiB.

        Some of a cycle's seconds are waited for data. A pace is left out where there was no cycle.
        """
        last, self._last = self._last, self._now()
        seconds, images, cycles, waited = (now - before for now, before in zip(self._last, last, strict=True))
        found = {"time": time.time(), "pace/seconds": self.position.seconds}
        if seconds > 0 and cycles > 0:
            found |= {"pace/images_per_second": images / seconds, "pace/seconds_per_cycle": seconds / cycles}
            found |= {"pace/waited_for_data": waited / cycles}
        return found | self.memory()

    def memory(self) -> dict[str, float]:
        """GiB held now and, on a GPU, at most."""
        if self.device.type != "cuda":
            return {"memory/gib": psutil.Process().memory_info().rss / GIB}
        return {
            "memory/gib": torch.cuda.memory_allocated(self.device) / GIB,
            "memory/peak_gib": torch.cuda.max_memory_allocated(self.device) / GIB,
        }

    def foretold(self, images: int, minutes: float | None = None) -> str | None:
        """Once it is known, how long the rest of a stage takes; None at all other times.

        Args:
            images: after which the stage is over.
            minutes: of training, after which it is over in any case.
        """
        now, position = self.position.seconds, self.position
        if self._told:
            return None
        if self._first is None:
            self._first = (now, position.images)
            return None
        took, done = now - self._first[0], position.images - self._first[1]
        if took < KNOWN_S or done <= 0:
            return None
        self._told = True
        left = max(0, images - position.images) * took / done
        if minutes is not None:
            left = max(0.0, min(left, 60 * minutes - now))
        return f"{done / took:.3g} images/s: the stage is over in about {spoken(left)}"

    def _now(self) -> tuple[float, int, int, float]:
        return self.position.seconds, self.position.images, self.position.cycle, self.waited()


def spoken(seconds: float) -> str:
    """A duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"


def sized(size: float) -> str:
    """Bytes in words."""
    return f"{size / GIB:.3g} GiB" if size >= GIB / 10 else f"{size / 2**20:.3g} MiB"
