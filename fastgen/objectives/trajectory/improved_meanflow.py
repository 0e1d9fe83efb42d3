"""Improved MeanFlow (Geng et al. 2025, arXiv:2512.02012): the mean velocity is trained as a velocity.

On the flow process, as `meanflow`, but V = u + (t - s) sg(du / dt) is regressed, and onto the velocity itself, a target
that does not depend on the network. The derivative goes along the network's own velocity u(x, t, t), which,
unlike that of one sample and one noise, is a function of x alone.

The published code has a second head for that velocity, and guidance and its interval as inputs of the network. Neither
is here: the diagonal's rows train u(x, t, t), the paper's simpler choice, and a teacher's guidance is fixed or told.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogitNormal, pad_like
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.derivative import along, check_step, needs_fine_times
from ..parts.distances import adaptive
from ..parts.flow_map import noised
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance
from ..parts.velocity import Velocity, check_velocity, needs_velocity, trajectory_of
from .meanflow import two_draws, with_diagonal


@dataclass(frozen=True)
class ImprovedMeanFlow:
    """iMF.

    Args:
        velocity: whose velocity is followed: the data's, eps - x0, or the teacher's.
        teacher_guidance: guidance of the teacher.
        times: t and s are the larger and the smaller of two draws.
        diagonal: share of rows with s = t.
        power, c: as in `meanflow`.
        derivative_step: step in the flow's time that du / dt is averaged over, see `along`. Exact by default.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    velocity: Velocity = "real_score"
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = LogitNormal(-0.4, 1.0)
    diagonal: float = 0.5
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
        start, model, process = noised(roles, batch, t), roles.generator, roles.process
        followed = trajectory_of(self, roles, batch, start)
        scalars = {"s": s, **followed.scalars}

        def curve(x: Latent, clock: Tensor) -> Latent:
            return model(x, process.from_clock(clock), batch.cond, scalars).velocity

        own = look(model, start.x_t, t, batch.cond, {**scalars, "s": t}).velocity
        rate = along(model, curve, start.x_t, t, own, step=self.derivative_step).rate
        u = through(model, start.x_t, t, batch.cond, scalars).velocity
        error = u + pad_like(t - s, u) * rate - followed.belief.velocity
        return {"mean_velocity": adaptive(error.to(u.dtype), power=self.power, c=self.c).mean()}
