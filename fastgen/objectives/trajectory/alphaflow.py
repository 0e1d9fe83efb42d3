"""AlphaFlow: from straight trajectories to mean velocities (Zhang et al. 2025, arXiv:2510.20771, and its code).

On the flow process, as `meanflow`, but the derivative comes last. With d = a (t - s) the target of u(x_t, t, s) is

    [d v + (t - d - s) u(x_t - d v, t - d, s)] / (t - s):

at a = 1 the velocity itself whatever s is, at a = 1/2 a shortcut's two halves, and as a falls to 0 what MeanFlow's
derivative says. In between a falls by a sigmoid of the images seen.
"""

import math
from dataclasses import dataclass
from typing import final

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import Latent, Time, pad_like
from ..parts.base import Batch
from ..parts.mean_velocity import Chord, MeanVelocity
from .meanflow import mean_velocity

LEAST = 0.005
"""Below it a is 0."""
STEEP = 25.0


@final
@dataclass(frozen=True)
class AlphaFlow(MeanVelocity):
    """Mean velocities by a curriculum.

    Args:
        begin, end: images between which a falls from 1 to 0.
        c: the loss is a D / (sg D + c) of the mean squared error D, and at a = 0 D / (sg D + c).
        derivative_step: step in the flow's time that the derivative is averaged over once a is 0, see `along`. Exact by
            default.
    """

    diagonal: float = 0.25
    begin: int = 0
    end: int = 50_000_000
    c: float = 0.001

    def check(self) -> None:
        if not 0 <= self.begin < self.end:
            raise ValueError(f"a falls between {self.begin} and {self.end} images: need 0 <= begin < end")

    def alpha(self, images: int) -> float:
        """a after so many images, in [0, 1]."""
        middle, width = (self.begin + self.end) / 2, self.end - self.begin
        falling = 1 / (1 + math.exp(min(STEEP * (images - middle) / width, 100.0)))
        return falling if falling >= LEAST else 0.0

    def errors(self, roles: Roles, batch: Batch, chord: Chord) -> Time:
        a = self.alpha(batch.images)
        aim = self._aim(roles, batch, chord, a)
        error = through(roles.generator, chord.x_t, chord.t, batch.cond, chord.scalars).velocity - aim
        square = error.square().flatten(1).mean(dim=1)
        return (a or 1.0) * square / (square.detach() + self.c)

    def _aim(self, roles: Roles, batch: Batch, chord: Chord, a: float) -> Latent:
        if not a:
            return mean_velocity(roles, batch, chord, step=self.derivative_step)
        v, t, x_t = chord.v, chord.t, chord.x_t
        middle = t - a * (t - chord.s)
        x_m = (x_t - pad_like(t - middle, v) * v).to(x_t.dtype)
        rest = look(roles.generator, x_m, middle, batch.cond, chord.scalars).velocity
        return (a * v + (1 - a) * rest).to(v.dtype).detach()
