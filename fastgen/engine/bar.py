"""The progress of a stage: a bar on a terminal, and now and then a line where nobody sees a bar."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Any

from tqdm import tqdm

from .pace import spoken

MARKS = 10
"""Lines of a stage where there is no terminal."""


class Bar:
    """How far a stage is, with images/s, the time left, memory and the latest figures.

    Args:
        name: of the stage, and which of how many it is.
        share: of it that is done, in images or in minutes, whichever ends it sooner.
        say: where lines go.
        hidden: nothing is shown, as on all processes but the first.
    """

    def __init__(self, name: str, *, share: float, say: Callable[[str], None], hidden: bool) -> None:
        self._name, self._say, self._images, self._share, self._marks = name, say, 0, share, -1
        self._began = time.monotonic(), share
        self._lines = not hidden and not sys.stderr.isatty()
        self._tqdm: tqdm[Any] = tqdm(
            total=1.0,
            initial=share,
            desc=name,
            disable=hidden or self._lines,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar:12}| {remaining} left{postfix}",
        )

    def close(self) -> None:
        """Ends the bar; what was shown stays on the terminal."""
        self._tqdm.close()

    def move(self, images: int, share: float) -> None:
        """Moves the bar to so many images and a share of the stage."""
        self._tqdm.update(share - self._share)
        self._images, self._share = images, share

    def tell(self, figures: Mapping[str, float], quality: Iterable[str], pace: Mapping[str, float]) -> None:
        """The latest figures by role, what was measured last, and the machine's own."""
        rate = pace.get("pace/images_per_second")
        speed = [] if rate is None else [f"{rate:.3g} images/s"]
        told = [f"{self._images:,} images", *speed, f"{pace['memory/gib']:.2f} GiB", *quality, *by_role(figures)]
        if not self._lines:
            self._tqdm.set_postfix_str("; ".join(told))
            return
        before, self._marks = self._marks, int(self._share * MARKS + 1e-9)
        if self._marks > before:
            self._say(f"{self._name}: {self._share:.0%}{self._left()}; {'; '.join(told)}")

    def _left(self) -> str:
        """The time left at the pace of this process so far; nothing before the first mark, or at the end."""
        since, share = self._began
        if self._marks < 1 or self._share >= 1 or self._share <= share:
            return ""
        return f", about {spoken((time.monotonic() - since) * (1 - self._share) / (self._share - share))} left"


def by_role(figures: Mapping[str, float]) -> list[str]:
    """Figures named "role/what", role by role: "generator dm 0.12 grad 1.3"; learning rates are left out."""
    named = [(*name.split("/", 1), value) for name, value in figures.items() if "/" in name]
    shown = [(role, what, value) for role, what, value in named if what != "lr" and role != "quality"]
    ordered = groupby(sorted(shown, key=lambda one: one[0] != "generator"), key=lambda one: one[0])
    return [" ".join([role, *(f"{what} {value:.3g}" for _, what, value in ones)]) for role, ones in ordered]
