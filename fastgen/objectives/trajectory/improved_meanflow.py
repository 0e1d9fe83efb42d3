"""Improved MeanFlow (Geng et al. 2025, arXiv:2512.02012): the mean velocity is trained as a velocity.

On the flow process, as `meanflow`, but V = u + (t - s) sg(du / dt) is regressed, and onto the velocity itself, a target
that does not depend on the network. The derivative goes along the network's own velocity u(x, t, t), which,
unlike that of one sample and one noise, is a function of x alone.

The published code has a second head for that velocity, and guidance and its interval as inputs of the network. Neither
is here: the diagonal's rows train u(x, t, t), the paper's simpler choice, and a teacher's guidance is fixed or told.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import Latent, Time, pad_like
from ..parts.base import Batch
from ..parts.derivative import along
from ..parts.distances import adaptive
from ..parts.mean_velocity import Chord, MeanVelocity


@final
@dataclass(frozen=True)
class ImprovedMeanFlow(MeanVelocity):
    """Mean velocities that are trained as velocities.

    Args:
        power, c: the loss is D / (sg D + c)^power of the summed squared error D.
    """

    diagonal: float = 0.5
    power: float = 1.0
    c: float = 0.01

    def errors(self, roles: Roles, batch: Batch, chord: Chord) -> Time:
        model, process, x_t, t = roles.generator, roles.process, chord.x_t, chord.t

        def curve(x: Latent, clock: Tensor) -> Latent:
            return model(x, process.from_clock(clock), batch.cond, chord.scalars).velocity

        own = look(model, x_t, t, batch.cond, {**chord.scalars, "s": t}).velocity
        rate = along(model, curve, x_t, t, own, step=self.derivative_step).rate
        u = through(model, x_t, t, batch.cond, chord.scalars).velocity
        error = u + pad_like(t - chord.s, u) * rate - chord.v
        return adaptive(error.to(u.dtype), power=self.power, c=self.c)
