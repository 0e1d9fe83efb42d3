"""MeanFlow: average velocities (Geng et al. 2025, arXiv:2505.13447), distilled from a teacher or trained on data.

By the identity u = v - (t - s) du / dt (eq. 6) the generator's mean velocity u(x, t, s) is its own target.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import Latent, Time, pad_like
from ..parts.base import Batch
from ..parts.derivative import along
from ..parts.distances import adaptive
from ..parts.mean_velocity import Chord, MeanVelocity


@final
@dataclass(frozen=True)
class MeanFlow(MeanVelocity):
    """Mean velocities by their derivative.

    Args:
        power, c: the loss is D / (sg D + c)^power of the summed squared error D. The paper's power of 1 is made for
            the data's velocity, whose errors never vanish; for a teacher's it mostly weighs what is already learned.
    """

    power: float = 1.0
    c: float = 0.01

    def errors(self, roles: Roles, batch: Batch, chord: Chord) -> Time:
        aim = mean_velocity(roles, batch, chord, step=self.derivative_step)
        u = through(roles.generator, chord.x_t, chord.t, batch.cond, chord.scalars).velocity
        return adaptive(u - aim, power=self.power, c=self.c)


def mean_velocity(roles: Roles, batch: Batch, chord: Chord, *, step: float | None = None) -> Latent:
    """v - (t - s) du / dt along (v, 1, 0), a constant (eq. 10 and 11)."""
    model, process, v = roles.generator, roles.process, chord.v

    def curve(x: Latent, clock: Tensor) -> Latent:
        return model(x, process.from_clock(clock), batch.cond, chord.scalars).velocity

    rate = along(model, curve, chord.x_t, chord.t, v, step=step).rate
    return (v - pad_like(chord.t - chord.s, v) * rate).to(v.dtype).detach()
