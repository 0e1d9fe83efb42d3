"""Rectified flow's reflow (Liu et al. 2022, arXiv:2209.03003): straight lines between the ends of the teacher's pairs.

A line begins at the noise of a pair, where the student's own sampler begins, and ends in the teacher's sample of it.
Its points have one clean sample and one noise, those of the step that leads from its beginning to its end:

    x_t = alpha_t x0 + sigma_t eps',    eps' = (start - alpha_T x0) / sigma_T

On a flow that is (1 - t) x0 + t eps and the regression its velocity eps - x0; on other processes the same line is bent
by their scale alone. Where no lines cross the student is exact on every grid, in one step too. Teachers of the next
round are students of this one (`teacher: {path: OUT/student}`), as the one step of InstaFlow (arXiv:2309.06380) is
`kd` on pairs of a reflowed teacher.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import edges_of
from ..parts.lines import line_loss
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.solvers import landing_on


@dataclass(frozen=True)
class Reflow:
    """One round of reflow; of any number of deterministic steps.

    Args:
        times: where the lines are learned, between clean data and the student's first stop.
        space: row in which errors are squared; "difference" is a flow's velocity.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    times: AnyTimeLaw = Uniform()
    space: RowName = "difference"

    @property
    def needs(self) -> Needs:
        return Needs(pairs=True, sampler="ode")

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        first, clean = batch.full(edges_of(roles, batch)[0]), batch.full(0.0)
        start = roles.process.prior(batch.pair.eps, first)
        line = landing_on(roles.process, start, first, batch.pair.x0, clean)
        return {"reflow": line_loss(roles, batch, line, until=clean, law=self.times, space=self.space)}
