"""Where a stage stands, and what it took to get there."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from ..objectives import Turn


@dataclass
class Position:
    """Where a stage stands.

    Args:
        cycle: cycles done.
        images: samples of generator turns that ended in an update, over all processes.
        drawn: samples taken from the data stream.
        seconds: spent in cycles, the mean over all processes.
    """

    cycle: int = 0
    images: int = 0
    drawn: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Boundary:
    """A cycle that is over, before what is due after it: a measurement, a log line, a picture, a checkpoint.

    Args:
        before: images of the generator's turns before that cycle.
        figures: figures of the cycle.
    """

    before: int
    figures: dict[str, float]

    def state(self) -> dict[str, Any]:
        """The boundary as JSON, figures as text since JSON has no infinity."""
        return {"before": self.before, "figures": {name: repr(value) for name, value in self.figures.items()}}

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> "Boundary | None":
        """What `state` made; None of a checkpoint that left nothing due."""
        if state is None:
            return None
        return cls(state["before"], {name: float(value) for name, value in state["figures"].items()})


@dataclass(frozen=True)
class Drawn:
    """A whole batch.

    Args:
        number: of the first turn in its cycle that it is for; the noise follows from it.
        positions: of the batch in the data stream, over all processes.
    """

    number: int
    positions: range


@dataclass
class Turned:
    """A turn that was taken.

    Args:
        turn: a turn of the cycle.
        drawn: what it read.
        names: names of its figures.
        values: their values and what the guard found of each, [2, n] on the device; reading them waits for it.
        rates: learning rates of its updates by name.
        stepped: whether its roles were stepped.
    """

    turn: Turn
    drawn: Drawn
    names: list[str]
    values: Tensor
    rates: dict[str, float]
    stepped: bool = False

    @cached_property
    def figures(self) -> dict[str, float]:
        """Losses, gradient norms and learning rates."""
        return {**dict(zip(self.names, self._read[0], strict=True)), **self.rates}

    @property
    def spikes(self) -> dict[str, float]:
        """The figures that exceed the median by too much, with the number of deviations."""
        return {name: far for name, far in zip(self.names, self._read[1], strict=True) if far > 0}

    @cached_property
    def _read(self) -> list[list[float]]:
        """The figures and their excesses, in one transfer from the device."""
        found: list[list[float]] = self.values.tolist()
        return found
