"""MeanFlow: average velocities (Geng et al. 2025, arXiv:2505.13447), distilled from a teacher or trained on data.

On the flow process the generator that is told a second time s predicts u(x, t, s), the velocity that leads from
(x, t) straight to the trajectory's point at s. By the identity u = v - (t - s) du / dt (eq. 6) it is its own target.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...models.calls import Scalars, through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogitNormal, Time, TimeLaw, pad_like
from ...seeds import uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.derivative import along, check_step, needs_fine_times
from ..parts.distances import adaptive
from ..parts.flow_map import noised
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance
from ..parts.velocity import Velocity, check_velocity, needs_velocity, trajectory_of


@dataclass(frozen=True)
class MeanFlow:
    """Mean velocities on the flow process.

    Args:
        velocity: whose velocity is followed: the teacher's, or the data's, eps - x0.
        teacher_guidance: guidance of the teacher.
        times: t and s are the larger and the smaller of two draws.
        diagonal: share of rows with s = t, where the target is the velocity itself.
        power, c: the loss is D / (sg D + c)^power of the summed squared error D. The paper's power of 1 is made for
            the data's velocity, whose errors never vanish; for a teacher's it mostly weighs what is already learned.
        derivative_step: step in the flow's time that du / dt is averaged over, see `along`. Exact by default.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    velocity: Velocity = "real_score"
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = LogitNormal(-0.4, 1.0)
    diagonal: float = 0.75
    power: float = 1.0
    c: float = 0.01
    derivative_step: float | None = None

    def __post_init__(self) -> None:
        check_velocity(self)
        check_step(self.derivative_step)
        if not 0 <= self.diagonal <= 1:
            raise ValueError(f"diagonal is {self.diagonal}: a share of rows lies in [0, 1]")

    @property
    def needs(self) -> Needs:
        own = Needs(process="flow", sampler="ode", scalars={"generator": {"s"}})
        return needs_velocity(self) | needs_fine_times(self.derivative_step) | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t, s = with_diagonal(*two_draws(self.times, roles, batch), self.diagonal, batch)
        start = noised(roles, batch, t)
        followed = trajectory_of(self, roles, batch, start)
        v, scalars = followed.belief.velocity, {"s": s, **followed.scalars}
        aim = mean_velocity(roles, batch, start.x_t, t, v, scalars, step=self.derivative_step)
        u = through(roles.generator, start.x_t, t, batch.cond, scalars).velocity
        return {"mean_velocity": adaptive(u - aim, power=self.power, c=self.c).mean()}


def two_draws(law: TimeLaw, roles: Roles, batch: Batch) -> tuple[Time, Time]:
    """The larger and the smaller of two times of a law, [B] each."""
    a, b = (law.sample(roles.process, batch.size, batch.rng) for _ in range(2))
    return torch.maximum(a, b), torch.minimum(a, b)


def with_diagonal(t: Time, s: Time, share: float, batch: Batch) -> tuple[Time, Time]:
    """t and s [B], with s set to t in a share of the rows."""
    same = uniform(batch.rng, batch.size) < share
    return t, torch.where(same, t, s)


def mean_velocity(
    roles: Roles, batch: Batch, x_t: Latent, t: Time, v: Latent, scalars: Scalars, *, step: float | None = None
) -> Latent:
    """v - (t - s) du / dt along (v, 1, 0), a constant (eq. 10 and 11)."""
    model, process = roles.generator, roles.process

    def curve(x: Latent, clock: torch.Tensor) -> Latent:
        return model(x, process.from_clock(clock), batch.cond, scalars).velocity

    rate = along(model, curve, x_t, t, v, step=step).rate
    return (v - pad_like(t - scalars["s"], v) * rate).to(v.dtype).detach()
