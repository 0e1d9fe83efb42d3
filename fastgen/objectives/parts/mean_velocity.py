"""The family of mean velocities: what its papers share, and how their rows are drawn.

On the flow process the generator that is told a second time s predicts u(x, t, s), the velocity that leads from
(x, t) straight to the trajectory's point at s. `MeanVelocity` is abstract and a paper is final: it has settings and
defaults of its own, writes `errors` and may say `check`; nothing else is overridden.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch

from ...models.calls import Scalars
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogitNormal, Time, TimeLaw
from ...seeds import uniform
from .base import ONE_TURN, Batch, Cycle, Terms
from .derivative import check_step, needs_fine_times
from .flow_map import noised
from .needs import Needs
from .solvers import AnyScale, Guidance
from .velocity import Velocity, check_velocity, needs_velocity, trajectory_of


@dataclass(frozen=True)
class Chord:
    """The straight way from a point of a trajectory to a later one.

    Attributes:
        x_t: sample [B, ...] at time t.
        t, s: times [B], s <= t.
        v: velocity at (x_t, t) that is followed, [B, ...].
        scalars: what the generator is told: "s", and of guidance what the teacher's was.
    """

    x_t: Latent
    t: Time
    s: Time
    v: Latent
    scalars: Scalars


@dataclass(frozen=True)
class MeanVelocity(ABC):
    """Mean velocities on the flow process.

    Args:
        velocity: whose velocity is followed: the teacher's, or the data's, eps - x0.
        teacher_guidance: guidance of the teacher.
        times: t and s are the larger and the smaller of two draws.
        diagonal: share of rows with s = t, where the mean velocity is the velocity itself.
        derivative_step: step in the flow's time that du / dt is averaged over, see `along`. Exact by default.

    Raises:
        ValueError: guidance of the data, a share outside of [0, 1], or settings that do not fit the paper.
    """

    velocity: Velocity = "real_score"
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = LogitNormal(-0.4, 1.0)
    diagonal: float = 0.75
    derivative_step: float | None = None

    @abstractmethod
    def errors(self, roles: Roles, batch: Batch, chord: Chord) -> Time:
        """The paper's loss of each row, [B]."""

    def check(self) -> None:  # noqa: B027 - most papers have nothing to say here
        """Raises ValueError for settings that do not fit the paper."""

    @final
    def __post_init__(self) -> None:
        check_velocity(self)
        check_step(self.derivative_step)
        if not 0 <= self.diagonal <= 1:
            raise ValueError(f"diagonal is {self.diagonal}: a share of rows lies in [0, 1]")
        self.check()

    @property
    @final
    def cycle(self) -> Cycle:
        """The generator's turn alone."""
        return ONE_TURN

    @property
    @final
    def needs(self) -> Needs:
        """The data, the teacher where its velocity is followed, and a generator that is told s."""
        own = Needs(process="flow", sampler="ode", scalars={"generator": {"s"}})
        return needs_velocity(self) | needs_fine_times(self.derivative_step) | own

    @final
    def generator(self, roles: Roles, batch: Batch) -> Terms:
        """The mean of the rows' errors."""
        t, s = with_diagonal(*two_draws(self.times, roles, batch), self.diagonal, batch)
        start = noised(roles, batch, t)
        followed = trajectory_of(self, roles, batch, start)
        chord = Chord(start.x_t, t, s, followed.belief.velocity, {"s": s, **followed.scalars})
        return {"mean_velocity": self.errors(roles, batch, chord).mean()}


def two_draws(law: TimeLaw, roles: Roles, batch: Batch) -> tuple[Time, Time]:
    """The larger and the smaller of two times of a law, [B] each."""
    a, b = (law.sample(roles.process, batch.size, batch.rng) for _ in range(2))
    return torch.maximum(a, b), torch.minimum(a, b)


def with_diagonal(t: Time, s: Time, share: float, batch: Batch) -> tuple[Time, Time]:
    """t and s [B], with s set to t in a share of the rows."""
    same = uniform(batch.rng, batch.size) < share
    return t, torch.where(same, t, s)
