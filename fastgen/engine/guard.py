"""Whether turns may step: not where a figure is not finite nor, if asked for, where it lies far above those before.

Figures are judged on the device, by the median and the median absolute deviation of their last turns, so that a step
can be kept back without the host. It reads what was found with the figures themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config.guards import GuardsConfig
from ..errors import NonFiniteError, SpikeError, TrainingError
from ..objectives import Turn
from .progress import Turned

WINDOW = 64
"""Turns of the past that a figure is held against."""
LEAST = 32
"""Finite ones among them without which it is not judged."""
SMALLEST = 0.1
"""The least that counts as a standard deviation, as a share of the median."""
NORMAL = 1.4826
"""The standard deviation of normal numbers over their median absolute deviation."""
MOST_SKIPS = 20
"""Overflows in a row that a loss scaler may skip."""


@dataclass(frozen=True)
class Incident:
    """A turn that was out of line.

    Args:
        taken: the turn.
        cycle: of its stage.
        said: what was found, in words.
    """

    taken: Turned
    cycle: int
    said: str


class Guard:
    """Judges the turns of a stage.

    Attributes:
        incidents: turns that were out of line, until someone takes them.

    Args:
        settings: what follows from a spike.
        name: of the stage.
        half: a loss scaler skips what overflows and goes on.
        device: of the figures.
    """

    def __init__(self, settings: GuardsConfig, name: str, *, half: bool, device: torch.device) -> None:
        self.incidents: list[Incident] = []
        self._settings, self._name, self._half = settings, name, half
        self._past: dict[str, Tensor] = {}
        self._skips: dict[Turn, int] = {}
        self._broken = torch.zeros((), device=device)

    def judged(self, turn: Turn, values: Tensor) -> Tensor:
        """The figures of a turn with a second row that says which of them spike.

        Args:
            turn: the turn.
            values: its figures [n], which are the same on every process.

        Returns:
            [2, n]: the figures, and for each that spikes the number of deviations by which it exceeds the median of
            its past; 0 for all others.
        """
        if self._settings.spikes == "ignore":
            return torch.stack([values, torch.zeros_like(values)])
        past = self._past.get("+".join(turn))
        if past is None or past.shape[1] != len(values):
            past = values.new_full((WINDOW, len(values)), math.inf)
        excess = excesses(past, values)
        found = torch.where(excess > self._settings.spike_at, excess, 0)
        sound = values.isfinite().all() & (self._broken == 0)
        self._past["+".join(turn)] = torch.where(sound, torch.cat([past[1:], values[None]]), past)
        return torch.stack([values, found])

    def blocked(self, taken: Turned) -> Tensor:
        """1 where a turn must not step, otherwise 0; on the device. What stops the run blocks the turns after it."""
        values, found = taken.values
        broken, spiked = 1 - values.isfinite().all().float(), (found > 0).any().float()
        if self._settings.spikes == "stop":
            broken = torch.maximum(broken, spiked)
        self._broken = torch.maximum(self._broken, broken)
        return torch.maximum(self._broken, spiked) if self._settings.spikes == "skip" else self._broken

    def passes(self, taken: Turned, cycle: int) -> bool:
        """Whether a turn may step, or did; reads its figures.

        Raises:
            NonFiniteError: a figure is not finite; under fp16, once too often in a row.
            SpikeError: a figure spiked, and that stops the run.
        """
        turn, figures = taken.turn, taken.figures
        bad = [name for name, value in figures.items() if not math.isfinite(value)]
        self._skips[turn] = self._skips.get(turn, 0) + 1 if bad else 0
        where = f"in cycle {cycle} of stage {self._name!r}, {turn[0]}'s turn"
        if bad and (not self._half or self._skips[turn] > MOST_SKIPS):
            said = f"{', '.join(f'{name} is {figures[name]}' for name in bad)} {where}"
            self._stop(taken, cycle, said, NonFiniteError(f"{said}. {_INTACT}: {_REMEDY}"))
        if bad or not taken.spikes:
            return not bad
        said = f"{', '.join(_told(name, figures[name], far) for name, far in taken.spikes.items())} {where}"
        if self._settings.spikes == "stop":
            self._stop(taken, cycle, said, SpikeError(f"{said}. {_INTACT}: {_SPIKED}"))
        skips = self._settings.spikes == "skip"
        self.incidents.append(Incident(taken, cycle, f"{said}{'; it is skipped' if skips else ''}"))
        return not skips

    def taken(self) -> list[Incident]:
        """The incidents since this was last asked."""
        found, self.incidents = self.incidents, []
        return found

    def state(self) -> dict[str, Tensor]:
        """The figures that the next ones are held against."""
        return dict(self._past)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave; of another version's windows none."""
        held = {turn: past for turn, past in state.items() if past.ndim == 2 and len(past) == WINDOW}
        self._past = {turn: past.to(self._broken.device, copy=True) for turn, past in held.items()}

    def _stop(self, taken: Turned, cycle: int, said: str, error: TrainingError) -> None:
        self._broken = torch.zeros_like(self._broken)
        self.incidents.append(Incident(taken, cycle, said))
        raise error


_INTACT = "Nothing was updated and the last checkpoint is intact"
_REMEDY = "lower that role's learning rate, use bf16 instead of fp16, or look for a bad sample in the data"
_SPIKED = (
    "go on from there with --resume guards.spikes=skip, lower that role's learning rate, or look for a bad sample in "
    "the data"
)


def excesses(past: Tensor, values: Tensor) -> Tensor:
    """How many robust standard deviations figures [n] lie above the median of the past [m, n]; NaN is not known.

    What is not finite is no past. Where the past has no spread, as that of a term that has not begun, nothing is known.
    """
    past = torch.where(past.isfinite(), past, math.nan)
    middle = past.nanmedian(dim=0).values
    spread = NORMAL * (past - middle).abs().nanmedian(dim=0).values
    spread = torch.maximum(spread, SMALLEST * middle.abs())
    known = ((~past.isnan()).sum(dim=0) >= LEAST) & (spread > 0)
    return torch.where(known, (values - middle) / spread, math.nan)


def _told(name: str, value: float, far: float) -> str:
    return f"{name} spikes to {value:.4g}, {far:.3g} deviations above its median"
