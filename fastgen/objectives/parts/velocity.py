"""Whose trajectory a generator learns: the guided teacher's, or the straight line from a sample to its noise."""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from ...models.calls import NONE, Scalars
from ...models.roles import Roles
from ...process import Prediction
from .base import Batch
from .needs import Needs
from .ops import Noised
from .solvers import Guidance

Velocity = Literal["real_score", "data"]


@runtime_checkable
class Followed(Protocol):
    """The settings that say whose velocity is followed."""

    @property
    def velocity(self) -> Velocity: ...

    @property
    def teacher_guidance(self) -> Guidance: ...


@dataclass(frozen=True)
class Trajectory:
    """What is believed of noised samples, and what the generator is told of the guidance behind it."""

    belief: Prediction
    scalars: Scalars


def check_velocity(settings: Followed) -> None:
    """Raises ValueError where guidance is asked of data."""
    low, high = settings.teacher_guidance.low, settings.teacher_guidance.high
    if settings.velocity == "data" and (low, high) != (1, 1):
        raise ValueError(
            f"teacher_guidance is [{low:g}, {high:g}] and velocity is data, which has none: set teacher_guidance=1, or "
            "velocity=real_score"
        )


def needs_velocity(settings: Followed, *, target: bool = False) -> Needs:
    """The needs of an objective with these settings, with a target or without."""
    if settings.velocity == "data":
        return Needs(images=True, target=target)
    return Needs(images=True, real_score=True) | settings.teacher_guidance.needs(target=target)


def trajectory_of(settings: Followed, roles: Roles, batch: Batch, start: Noised) -> Trajectory:
    """The teacher's belief, or the truth, whose expectation at (x_t, t) is the exact one."""
    if settings.velocity == "data":
        return Trajectory(start.truth, NONE)
    field = settings.teacher_guidance.field(roles, batch)
    return Trajectory(field(start.x_t, start.t), settings.teacher_guidance.scalars(batch, field))
