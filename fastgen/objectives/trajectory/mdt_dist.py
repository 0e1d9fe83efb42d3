"""MDT-dist: marginal-data transport (2025, arXiv:2509.04406, and its code): from any time straight to the data.

On the flow process the generator's velocity u(x, t) is the mean one from (x, t) to the data, by the identity
u = v - t du/dt along the teacher's v, of which the right side is a constant. Velocity matching learns it at noised
samples. Velocity distillation looks at the generator's own: what it says wrong of a one-step sample that was noised
moves the velocity from noise that made the sample, as a difference of scores would, and no fake score is needed. Both
vanish at the same u. The published code divides du/dt by |du/dt| + c, with which they vanish elsewhere: of a large
sample's hardly anything is left, and u is nearly v (`normaliser` is that c; by default there is none).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...models.calls import Scalars, look, through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogitNormal, pad_like
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.derivative import along, check_step, needs_fine_times
from ..parts.flow_map import edges_of, noised
from ..parts.needs import Needs
from ..parts.ops import Noised, surrogate
from ..parts.solvers import AnyScale, Field, Guidance


@dataclass(frozen=True)
class MarginalDataTransport:
    """Velocity matching and velocity distillation.

    Args:
        distillation: weight of velocity distillation, beside 1 of velocity matching.
        teacher_guidance: guidance of the teacher, in both; the published code's for shapes in 3D are 41 and 101.
        times: where both look.
        normaliser: c, beside the length of a sample's du/dt; null leaves that as it is.
        derivative_step: step in the flow's time that du/dt is averaged over, see `along`.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    distillation: float = 1.0
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = LogitNormal(1.0, 1.0)
    normaliser: float | None = None
    derivative_step: float | None = 0.01

    def __post_init__(self) -> None:
        check_step(self.derivative_step)
        if self.distillation < 0 or (self.normaliser is not None and self.normaliser <= 0):
            raise ValueError(
                f"distillation is {self.distillation:g} and normaliser {self.normaliser}: need a weight of at least 0, "
                "and a length above 0 or null"
            )

    @property
    def needs(self) -> Needs:
        own = Needs(real_score=True, images=True, process="flow")
        return own | self.teacher_guidance.needs() | needs_fine_times(self.derivative_step)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        field = self.teacher_guidance.field(roles, batch)
        told = self.teacher_guidance.scalars(batch, field)
        t = self.times.sample(roles.process, batch.size, batch.rng)
        start = noised(roles, batch, t)
        said = through(roles.generator, start.x_t, t, batch.cond, told).velocity
        terms = {"matching": (said - self._aim(roles, batch, start, field, told)).square().mean()}
        if not self.distillation:
            return terms
        first = batch.full(edges_of(roles, batch)[0])
        z = roles.process.prior(batch.noise(), first)
        x0 = through(roles.generator, z, first, batch.cond, told).x0
        own = Noised.of(roles.process, x0.detach(), t, batch.noise())
        error = look(roles.generator, own.x_t, t, batch.cond, told).velocity - self._aim(roles, batch, own, field, told)
        return terms | {"distillation": self.distillation * surrogate(x0, -2 * error)}

    def _aim(self, roles: Roles, batch: Batch, start: Noised, field: Field, told: Scalars) -> Latent:
        """v - t du/dt of the guided teacher's v, a constant."""
        model, process = roles.generator, roles.process

        def curve(x: Latent, clock: torch.Tensor) -> Latent:
            return model(x, process.from_clock(clock), batch.cond, told).velocity

        v = field(start.x_t, start.t).velocity
        rate = along(model, curve, start.x_t, start.t, v, step=self.derivative_step).rate
        if self.normaliser is not None:
            length = rate.flatten(1).norm(dim=1)
            rate = rate / pad_like(length + self.normaliser, rate)
        return (v - pad_like(start.t, v) * rate).to(v.dtype).detach()
