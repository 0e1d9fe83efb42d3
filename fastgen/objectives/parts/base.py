"""What an objective is, and what it is given. No behaviour: shared code is verbs in `ops` and `rollout`."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...models.conditioning import Conditioning
from ...models.roles import DENOISERS
from ...process import Latent, Time
from ...seeds import normal
from .needs import Needs

Turn = tuple[str, ...]
Cycle = tuple[Turn, ...]
ONE_TURN: Cycle = (("generator",),)
"""The cycle of an objective that trains the generator alone."""
Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Landing:
    """Where a generator's rollout ended.

    Args:
        x: the sample at time s, with gradient to the last call.
        s: its time [B]; None for a clean sample, of which much less has to be computed.
        t: the time [B] of the last call.
        x0: the clean sample that the last call predicted, with gradient; `x` itself where that is clean.
        calls: calls of the generator that led here; 1 where it began at noised data.
        x_t: what the last call was given; None of rollouts that do not tell it.
    """

    x: Latent
    s: Time | None
    t: Time
    x0: Latent
    calls: int = field(default=1, kw_only=True)
    x_t: Latent | None = field(default=None, kw_only=True)

    @property
    def landed(self) -> Time:
        """The time [B] of `x`: s, or 0 for a clean sample."""
        return torch.zeros_like(self.t) if self.s is None else self.s

    def detach(self) -> "Landing":
        return Landing(self.x.detach(), self.s, self.t, self.x0.detach(), calls=self.calls, x_t=self.x_t)


@dataclass(frozen=True)
class Pair:
    """Starting noise and the clean sample that the teacher's probability flow makes of it, [B, ...] each."""

    eps: Latent
    x0: Latent


@dataclass
class Batch:
    """One micro-batch.

    Args:
        cond: conditioning of its B rows.
        shape: shape of one sample, without the batch axis.
        rng: the random stream of its rows, on the device of the networks; `fastgen.seeds` draws from it.
        shared_rng: a stream with the same draws on every rank.
        real: real samples [B, *shape], or what makes them when a turn first asks for them; None in data-free training.
        pairs: ends of teacher trajectories, None where there are none.
        part: which of the micro-batches of its update it is, from 0.
        images: images seen by the generator so far in this stage, over all ranks.
        asked: what each row is asked for in words, its prompt or label, for rewards that read it.
        after: the turn before, in the same cycle; none before the first.
        changed: the conditioning of the same rows under the objective's context, None where it has none.
        kept: conditioning that the real score is told in the place of `cond`, where something is to be forgotten.
        landing: the detached rollout of an earlier turn, where turns share a batch.
    """

    cond: Conditioning
    shape: tuple[int, ...]
    rng: torch.Generator
    shared_rng: torch.Generator
    real: Tensor | Callable[[], Tensor] | None = None
    pairs: Pair | None = None
    images: int = 0
    part: int = 0
    asked: Sequence[str] = ()
    after: Turn = ()
    changed: Conditioning | None = None
    kept: Conditioning | None = None
    landing: Landing | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        return self.cond.size

    @property
    def taught(self) -> Conditioning:
        """What the real score is told."""
        return self.cond if self.kept is None else self.kept

    @property
    def x0(self) -> Tensor:
        """The real samples; an objective that reads them says so in `needs`."""
        if self.real is None:
            raise ValueError("this batch has no real samples: set images=True in the objective's `needs`")
        if not isinstance(self.real, Tensor):
            self.real = self.real()
        return self.real

    @property
    def pair(self) -> Pair:
        """The teacher's pairs; an objective that reads them says so in `needs`."""
        if self.pairs is None:
            raise ValueError("this batch has no teacher pairs: set pairs=True in the objective's `needs`")
        return self.pairs

    @property
    def context(self) -> Conditioning:
        """What the rows are asked for in other words; an objective that reads it says so in `needs`."""
        if self.changed is None:
            raise ValueError("this batch has no context: set context='... {} ...' in the objective's `needs`")
        return self.changed

    def noise(self) -> Tensor:
        """Fresh unit noise [B, *shape] in fp32."""
        return normal(self.rng, self.size, *self.shape)

    def full(self, t: float | Tensor) -> Tensor:
        """One time for the whole batch, [B] in float64."""
        return torch.full((self.size,), float(t), dtype=torch.float64, device=self.rng.device)


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass of hyper-parameters with one method per turn of its cycle.

    A turn is a tuple of roles trained together by one loss; its method is named after the first of them, takes
    (roles, batch) and returns named loss terms, already weighted, that the engine sums.
    """

    @property
    def cycle(self) -> Cycle:
        """The turns of one training cycle, in order."""
        ...

    @property
    def needs(self) -> Needs:
        """What it reads besides the roles it trains, and what it asks of the student."""
        ...


def shorthand(raw: Any, build: Callable[[float], Any]) -> Any:
    """What a number in a config stands for; anything else as it is.

    Raises:
        ValueError: it is infinite or not a number.
    """
    try:
        number = float(raw) if isinstance(raw, int | float | str) and not isinstance(raw, bool) else None
    except ValueError:  # some other text
        number = None
    if number is None:
        return raw
    if not math.isfinite(number):
        raise ValueError("Input should be a finite number")
    return build(number)


def roles_of(objective: Objective) -> tuple[str, ...]:
    """The roles that an objective trains, in the order of their first turn.

    Raises:
        ValueError: the cycle trains no generator, a turn has no method, or its needs are not `Needs`.
    """
    roles = tuple(dict.fromkeys(role for turn in objective.cycle for role in turn))
    if "generator" not in roles:
        raise ValueError(f"{type(objective).__name__} never trains the generator: its cycle is {objective.cycle}")
    for turn in objective.cycle:
        if not callable(getattr(objective, turn[0], None)):
            raise ValueError(f"{type(objective).__name__} has no method for its turn {turn}: write one named {turn[0]}")
    if not isinstance(objective.needs, Needs):
        raise ValueError(
            f"the needs of {type(objective).__name__} are a {type(objective.needs).__name__}: return fields by name, "
            "such as Needs(real_score=True, images=True)"
        )
    return roles


def denoisers_of(objective: Objective) -> tuple[str, ...]:
    """The denoisers that an objective trains or reads, in the order of `DENOISERS`."""
    asked = {*roles_of(objective), *objective.needs.reads}
    return tuple(role for role in DENOISERS if role in asked)
