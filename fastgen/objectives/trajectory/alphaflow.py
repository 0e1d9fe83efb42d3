"""AlphaFlow: from straight trajectories to mean velocities (Zhang et al. 2025, arXiv:2510.20771, and its code).

On the flow process, as `meanflow`, but the derivative comes last. With d = a (t - s) the target of u(x_t, t, s) is

    [d v + (t - d - s) u(x_t - d v, t - d, s)] / (t - s):

at a = 1 the velocity itself whatever s is, at a = 1/2 a shortcut's two halves, and as a falls to 0 what MeanFlow's
derivative says. In between a falls by a sigmoid of the images seen.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogitNormal, Time, pad_like
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.derivative import check_step, needs_fine_times
from ..parts.flow_map import noised
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance
from ..parts.velocity import Trajectory, Velocity, check_velocity, needs_velocity, trajectory_of
from .meanflow import mean_velocity, two_draws, with_diagonal

LEAST = 0.005
"""Below it a is 0."""
STEEP = 25.0


@dataclass(frozen=True)
class AlphaFlow:
    """Mean velocities by a curriculum.

    Args:
        velocity: whose velocity is followed: the teacher's, or the data's, eps - x0.
        teacher_guidance: guidance of the teacher.
        times: t and s are the larger and the smaller of two draws.
        diagonal: share of rows with s = t, where the target is the velocity itself.
        begin, end: images between which a falls from 1 to 0.
        c: the loss is a D / (sg D + c) of the mean squared error D, and at a = 0 D / (sg D + c).
        derivative_step: step in the flow's time that the derivative is averaged over once a is 0, see `along`. Exact by
            default.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    velocity: Velocity = "real_score"
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = LogitNormal(-0.4, 1.0)
    diagonal: float = 0.25
    begin: int = 0
    end: int = 50_000_000
    c: float = 0.001
    derivative_step: float | None = None

    def __post_init__(self) -> None:
        check_velocity(self)
        check_step(self.derivative_step)
        if not 0 <= self.diagonal <= 1:
            raise ValueError(f"diagonal is {self.diagonal}: a share of rows lies in [0, 1]")
        if not 0 <= self.begin < self.end:
            raise ValueError(f"a falls between {self.begin} and {self.end} images: need 0 <= begin < end")

    @property
    def needs(self) -> Needs:
        own = Needs(process="flow", sampler="ode", scalars={"generator": {"s"}})
        return needs_velocity(self) | needs_fine_times(self.derivative_step) | own

    def alpha(self, images: int) -> float:
        """a after so many images, in [0, 1]."""
        middle, width = (self.begin + self.end) / 2, self.end - self.begin
        falling = 1 / (1 + math.exp(min(STEEP * (images - middle) / width, 100.0)))
        return falling if falling >= LEAST else 0.0

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t, s = with_diagonal(*two_draws(self.times, roles, batch), self.diagonal, batch)
        start, a = noised(roles, batch, t), self.alpha(batch.images)
        followed = trajectory_of(self, roles, batch, start)
        aim = self._aim(roles, batch, start.x_t, t, s, followed, a)
        scalars = {"s": s, **followed.scalars}
        error = through(roles.generator, start.x_t, t, batch.cond, scalars).velocity - aim
        square = error.square().flatten(1).mean(dim=1)
        return {"mean_velocity": ((a or 1.0) * square / (square.detach() + self.c)).mean()}

    def _aim(self, roles: Roles, batch: Batch, x_t: Latent, t: Time, s: Time, followed: Trajectory, a: float) -> Latent:
        v, scalars = followed.belief.velocity, {"s": s, **followed.scalars}
        if not a:
            return mean_velocity(roles, batch, x_t, t, v, scalars, step=self.derivative_step)
        middle = t - a * (t - s)
        x_m = (x_t - pad_like(t - middle, v) * v).to(x_t.dtype)
        rest = look(roles.generator, x_m, middle, batch.cond, scalars).velocity
        return (a * v + (1 - a) * rest).to(v.dtype).detach()
