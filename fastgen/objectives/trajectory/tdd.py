"""TDD: target-driven distillation (Wang et al. 2024, arXiv:2409.01347).

Times are mapped only to times that the student will stop at, whatever of its declared step counts it is run with,
and a little below them, so that stochastic samplers find a trained target too. Where the condition is dropped, the
teacher's guidance cancels, so that the student keeps an unguided unconditional mode.
"""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from ...models.roles import Roles
from ...process import Time
from ...seeds import uniform
from ..parts.adversarial import AdversarialConsistency, ComparedJumps, above
from ..parts.base import Batch
from ..parts.flow_map import Interval, cells, check_decay, drawn_cell, edges_of, jumps, noised, origin, stops_of
from ..parts.needs import Needs
from ..parts.ops import picked
from ..parts.solvers import SOLVERS, AnyScale, Guidance


@final
@dataclass(frozen=True)
class TargetDriven(AdversarialConsistency):
    """TDD; the paper declares 4 to 8 steps for one student, which steps deterministically.

    Args:
        teacher_guidance: guidance of the teacher; the paper's 3.5 is 4.5 in Diffusers' convention.
        gan: adversarial term, compared up to the longest of the student's even steps above the target; 0 for none.
        window: targets lie at most so far below the highest that the teacher's step does not pass: 260 of 1000 steps.
        jitter: eta: a target s becomes (1 - eta u) s with u uniform in [0, 1].
        dropout: share of rows without condition.
        ema: decay of the target; 0, the paper's, makes the generator its own target. An average keeps momentum steady.
    """

    teacher_guidance: AnyScale = Guidance(4.5, 4.5)
    grid: int = 250
    window: float = 0.26
    jitter: float = 0.3
    dropout: float = 0.2
    ema: float = 0.0

    def check(self) -> None:
        check_decay(self.ema)
        if not (0 <= self.jitter <= 1 and 0 <= self.dropout <= 1):
            raise ValueError(f"jitter is {self.jitter} and dropout {self.dropout}: both lie in [0, 1]")

    @property
    def also(self) -> Needs:
        return Needs(sampler="ode", null=self.dropout > 0)

    def compared(self, roles: Roles, batch: Batch) -> ComparedJumps:
        if self.dropout:
            rows = uniform(batch.rng, batch.size) < self.dropout
            batch = replace(batch, cond=batch.cond.dropped(rows))
        t, r = drawn_cell(cells(edges_of(roles, batch), self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        interval, scalars = Interval(t, r, self.targets(roles, batch, r)), self.teacher_guidance.scalars(batch, field)
        ends = jumps(roles, batch, interval, x_t, x_r, ema=self.ema, scalars=scalars)
        return ComparedJumps(ends, above(ends.s, longest_step(roles)))

    def targets(self, roles: Roles, batch: Batch, r: Time) -> Time:
        """A target time [B] for each r: a stop within `window` below the highest one under r, lowered by `jitter`."""
        stops = stops_of(roles, batch)
        allowed = in_window(stops, r, self.window)
        drawn = picked(allowed, batch.rng)
        u = uniform(batch.rng, len(r), dtype=torch.float64)
        s: Tensor = stops[drawn] * (1 - self.jitter * u)
        return s.clamp(min=origin(roles.process, r.device))


def in_window(stops: Tensor, r: Time, window: float) -> Tensor:
    """Which of the ascending stops [k], from clean data on, are targets of each r: [B, k]."""
    reached = stops <= r[:, None]
    highest = stops[reached.sum(dim=1) - 1]
    return reached & (stops >= highest[:, None] - window)


def longest_step(roles: Roles) -> float:
    """The length of an even step where there are as many as in the student's shortest grid."""
    return 1 / min(len(grid) for grid in roles.plan.grids)
