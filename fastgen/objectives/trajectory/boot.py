"""BOOT: data-free bootstrapping along the student's own trajectory (Gu et al. 2023, arXiv:2306.05544).

The generator is called at noise z alone and is told a time s: what it predicts leads from z to the teacher's
trajectory at s. One step of the teacher from there, to an earlier r, shows where it has to lead when it is told r.

The paper's network predicts the signal y of x_s = alpha_s y + sigma_s z, which moves by its signal ODE

    y_r = y_s + (1 - sigma_r alpha_s / (alpha_r sigma_s)) (x0 - y_s)                                    (eq. 9)

with the teacher's x0 at x_s. That is the teacher's DDIM step, written here as the prediction whose step from z ends
there, which is the same where z has no signal in it. From z the first step begins whatever the network says: the
paper's boundary loss is that step. Its weights of the two losses were not found; all steps weigh the same here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import ROWS
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import divided, drawn_step
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName, landing_on


@dataclass(frozen=True)
class Bootstrapping:
    """BOOT; from prompts or labels alone, to one step.

    Args:
        steps: steps of the teacher from the noise to the data, even in process time.
        teacher_guidance: guidance of the teacher.
        solver: solver of the teacher's step.
        substeps: solver steps within each of these.
        space: row in which errors are squared; on a flow "difference" is the paper's signal.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    steps: int = 32
    teacher_guidance: AnyScale = Guidance()
    solver: SolverName = "ddim"
    substeps: int = 1
    space: RowName = "difference"

    def __post_init__(self) -> None:
        if self.steps < 1 or self.substeps < 1:
            raise ValueError(f"steps is {self.steps} and substeps {self.substeps}: need at least 1 of each")

    @property
    def needs(self) -> Needs:
        own = Needs(real_score=True, sampler="ode", one_step=True, scalars={"generator": {"s"}})
        return own | self.teacher_guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        first = float(roles.plan.grids[0][0])
        t = batch.full(first)
        z, field = roles.process.prior(batch.noise(), t), self.teacher_guidance.field(roles, batch)
        told, row = self.teacher_guidance.scalars(batch, field), ROWS[self.space]
        s, r = drawn_step(divided(torch.tensor([first, 0.0], dtype=torch.float64), self.steps), batch)
        x_s = look(roles.generator, z, t, batch.cond, {"s": s, **told}).at(s)
        x_r = SOLVERS[self.solver](field, x_s, s, r, substeps=self.substeps)
        aim = landing_on(roles.process, z, t, x_r, r).output(row)
        error = through(roles.generator, z, t, batch.cond, {"s": r, **told}).output(row) - aim
        return {"bootstrapping": error.square().mean()}
