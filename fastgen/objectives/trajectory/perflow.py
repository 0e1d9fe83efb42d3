"""PeRFlow: piecewise rectified flow (Yan et al. 2024, arXiv:2405.07510), a line in each window of the times.

A real sample is noised to the beginning of a window, and the teacher's solver leads from there to its end; the student
learns the line between the two at every time within. A window is a step of the student's shortest grid, so that its
steps are whole lines, and those of longer grids parts of one where their stops divide the shortest's.

A line has one clean sample and one noise, as a stock scheduler's step has: the noise is the published code's
`ddim_eps`, whose points between lie on the chord in x, which a scheduler of its own follows; on a flow the two are the
same. At the end of a window the network's belief jumps, and the student stops there. A network that is smooth in time
blends both sides, so that laws of times that lean to the beginnings, such as beta with a above b, learn the stops
better, and even ones what lies between.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import drawn_step, noised
from ..parts.lines import line_loss
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName, landing_on


@dataclass(frozen=True)
class PiecewiseRectifiedFlow:
    """PeRFlow; the student steps deterministically.

    Args:
        teacher_guidance: guidance of the teacher; 1 leaves guidance to the student's own call.
        solver: solver of the teacher.
        substeps: solver steps of the teacher in a window.
        times: where a window's line is learned; its [0, 1] is laid over the window.
        space: row in which errors are squared; "difference" is a flow's velocity.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    teacher_guidance: AnyScale = Guidance()
    solver: SolverName = "ddim"
    substeps: int = 8
    times: AnyTimeLaw = Uniform()
    space: RowName = "difference"

    def __post_init__(self) -> None:
        if self.substeps < 2:
            raise ValueError(f"substeps is {self.substeps}: need at least 2, a single step is a line already")

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=True, sampler="ode") | self.teacher_guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t, s = drawn_step(windows_of(roles), batch)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        x_s = SOLVERS[self.solver](field, x_t, t, s, substeps=self.substeps)
        line, scalars = landing_on(roles.process, x_t, t, x_s, s), self.teacher_guidance.scalars(batch, field)
        loss = line_loss(roles, batch, line, until=s, law=self.times, space=self.space, scalars=scalars)
        return {"reflow": loss}


def windows_of(roles: Roles) -> Tensor:
    """The descending times [n + 1] between the windows: the stops of the student's shortest grid, and 0."""
    grid = min(roles.plan.grids, key=len).double()
    return torch.cat([grid, grid.new_zeros(1)])
