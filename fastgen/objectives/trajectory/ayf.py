"""Align Your Flow: continuous flow maps of a teacher, its Eulerian form (Sabour et al. 2025, arXiv:2506.14603).

On the flow process the generator that is told a time s predicts F, and its map is f(x, t, s) = x - (t - s) F. Where a
trajectory leads does not change along it: df / dt = v - F - (t - s) dF / dt is to be zero. The loss is in the map,

    || f - sg f + g ||^2,    g = (v - F) - r (t - s) dF / dt,  shortened to g / (|g| + c),

so that F moves along g by (t - s): short intervals learn slowly. At s = 0 it is continuous consistency, at s near t
flow matching. No official code was to be had; the law of the times, c and the warm-up r are those of a third party's.
The paper's teacher is guided by a weaker version of itself, which is guidance here, and its last stage is adversarial,
which is left out.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogitNormal, pad_like
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.derivative import along, check_step, needs_fine_times
from ..parts.flow_map import noised
from ..parts.mean_velocity import two_draws
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance

MOST = 0.99
"""Of the warm-up's r."""


@dataclass(frozen=True)
class AlignYourFlow:
    """AYF's Eulerian map distillation.

    Args:
        teacher_guidance: guidance of the teacher.
        times: t and s are the larger and the smaller of two draws.
        warmup: images until the derivative has its whole weight r, which is 0.99.
        normaliser: c, beside the norm of a whole sample.
        derivative_step: step in the flow's time that dF / dt is averaged over, see `along`. Exact by default.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = LogitNormal(-0.8, 1.0)
    warmup: int = 10_000_000
    normaliser: float = 0.1
    derivative_step: float | None = None

    def __post_init__(self) -> None:
        check_step(self.derivative_step)
        if self.warmup < 0 or self.normaliser <= 0:
            raise ValueError(f"warmup is {self.warmup} and normaliser {self.normaliser:g}: need >= 0 and > 0")

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True, process="flow", sampler="ode", scalars={"generator": {"s"}})
        return own | self.teacher_guidance.needs() | needs_fine_times(self.derivative_step)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t, s = two_draws(self.times, roles, batch)
        start, field = noised(roles, batch, t), self.teacher_guidance.field(roles, batch)
        v, model, process = field(start.x_t, t).velocity, roles.generator, roles.process
        scalars = {"s": s, **self.teacher_guidance.scalars(batch, field)}

        def curve(x: Latent, clock: Tensor) -> Latent:
            return model(x, process.from_clock(clock), batch.cond, scalars).velocity

        found = along(model, curve, start.x_t, t, v, step=self.derivative_step)
        share = min(batch.images / self.warmup, MOST) if self.warmup else MOST
        width = pad_like(t - s, v)
        g = v - found.value - share * width * found.rate
        g = (g / (pad_like(g.flatten(1).norm(dim=1), g) + self.normaliser)).to(v.dtype)
        moved = -width * (through(model, start.x_t, t, batch.cond, scalars).velocity - found.value)
        return {"map": (moved + g).square().mean()}
