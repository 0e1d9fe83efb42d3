"""How a student steps: where it stops, what it is told there, and the loop that training, sampling and proofs share."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..process import Latent, Prediction, Process, Time
from .calls import guided, look
from .conditioning import Conditioning
from .contract import Denoiser

Sampler = Literal["renoise", "ode"]
"""From one stop to the next: predict x0 and add fresh noise, or keep the predicted noise."""

NoiseStream = Callable[[], Tensor]
"""Draws unit noise [B, ...], afresh at each call."""

StopScalars = Mapping[float, Mapping[str, float]]
"""Process time of a stop -> the scalars, by name, that a network is told there beside its time."""
NOTHING: StopScalars = {}

LARGEST_GUIDANCE = 20.0
"""The guidance scale that a network is told as 1."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How the student steps, which its exported scheduler fixes and every rollout keeps to.

    Attributes:
        grids: the descending process times [n] that it stops at, one grid for each declared number of steps.
        sampler: how it steps from one of these times to the next.
        scalars: what the generator's embeddings are told at each stop of its grids.
        boundary: the process time below which the second of two experts is called; 0 for one network.
    """

    grids: Sequence[Tensor]
    sampler: Sampler = "renoise"
    scalars: StopScalars = field(default_factory=dict)
    boundary: float = 0.0

    def on(self, process: Process) -> "Plan":
        """The same stops in the times of a process that the network's own was retold as."""
        boundary = self.boundary and float(process.grid_of(torch.tensor(self.boundary, dtype=torch.float64)))
        return replace(self, grids=tuple(process.grid_of(grid) for grid in self.grids), boundary=boundary)

    def telling(self, names: Sequence[str], *, guidance: float | None) -> "Plan":
        """The plan with the values of these scalars at all its stops; see `scalars_at`.

        Args:
            names: scalars that the generator has embeddings of.
            guidance: w, the value of the scalar "w".
        """
        scalars: dict[float, Mapping[str, float]] = {}
        for grid in self.grids if names else ():
            scalars |= scalars_at(grid.tolist(), names, sampler=self.sampler, guidance=guidance)
        return replace(self, scalars=scalars)


def scalars_at(grid: Sequence[float], names: Sequence[str], *, sampler: Sampler, guidance: float | None) -> StopScalars:
    """What a student is told at its stops: "r" and "s", where a step begins and leads, and "w", its guidance.

    Args:
        grid: descending process times.
        sampler: steps of ode lead to the following stop, those of renoise to clean data, which is then renoised.
        guidance: w.
    """
    ends = [*grid[1:], 0.0] if sampler == "ode" else [0.0] * len(grid)
    values = [{"r": t, "s": s, "w": (guidance or 0.0) / LARGEST_GUIDANCE} for t, s in zip(grid, ends, strict=True)]
    return {t: {name: value[name] for name in names} for t, value in zip(grid, values, strict=True)}


@dataclass(frozen=True, eq=False)
class Waypoint:
    """A place that a walk has come to.

    Attributes:
        x_t: the sample [B, ...] at time t.
        t: process time [B], 0 at the clean end.
        belief: the network's at the stop before, from which this one was reached; None at the first.
    """

    x_t: Latent
    t: Time
    belief: Prediction | None


def walk(
    model: Denoiser,
    noise: NoiseStream,
    cond: Conditioning,
    times: Sequence[float],
    *,
    sampler: Sampler,
    guidance: float = 1.0,
    scalars: StopScalars = NOTHING,
) -> Iterator[Waypoint]:
    """The student's own sampling without autograd: each of its stops in turn, and at last the clean sample.

    The network is called for what is asked for next, so that whoever leaves at a stop has not paid for it.

    Args:
        noise: called once at the start, and once for each further stop where it is renoised.
        times: descending process times, without the clean end.
        guidance: w of uncond + w (cond - uncond).
        scalars: scalars that the network is told at the times.
    """
    start, belief = noise(), None
    t = _full(start, times[0])
    x_t = model.process.prior(start, t)
    for here, following in zip(times, [*times[1:], 0.0], strict=True):
        yield Waypoint(x_t, t, belief)
        values = {name: _full(start, value) for name, value in scalars.get(here, {}).items()}
        belief, t = guided(look, model, x_t, t, cond, values, w=guidance), _full(start, following)
        if sampler == "ode":
            x_t = belief.at(t)
        else:
            x_t = model.process.renoise(belief.x0, t, noise()) if following else belief.x0
    yield Waypoint(x_t, t, belief)


def sample(
    model: Denoiser,
    noise: NoiseStream,
    cond: Conditioning,
    times: Sequence[float],
    *,
    sampler: Sampler,
    guidance: float = 1.0,
    scalars: StopScalars = NOTHING,
) -> Latent:
    """The clean sample at which a `walk` ends."""
    stops = walk(model, noise, cond, times, sampler=sampler, guidance=guidance, scalars=scalars)
    (end,) = deque(stops, maxlen=1)
    return end.x_t


def _full(like: Tensor, value: float) -> Tensor:
    return torch.full((len(like),), float(value), dtype=torch.float64, device=like.device)
