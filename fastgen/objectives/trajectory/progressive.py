"""Progressive distillation (Salimans & Ho 2022, arXiv:2202.00512): one step of the student for two of the teacher's.

One stage per round, `divided` halving from stage to stage, each with `carry: {real_score: generator}`.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.calls import through
from ...models.roles import Roles
from ...process import pad_like
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import divided, drawn_step, edges_of, noised
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance, ddim, landing_on


@dataclass(frozen=True)
class Progressive:
    """One round of progressive distillation; the student steps deterministically.

    Args:
        divided: into how many steps this round divides each of the exported student's: 1 in the last round.
        teacher_guidance: guidance of the teacher of this round.
        substeps: solver steps of the teacher in one step of the student.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    divided: int = 1
    teacher_guidance: AnyScale = Guidance()
    substeps: int = 2

    def __post_init__(self) -> None:
        if self.divided < 1 or self.substeps < 2:
            raise ValueError(
                f"divided is {self.divided} and substeps {self.substeps}: need at least 1 and 2, a round is "
                "several teacher steps in one of the student's"
            )

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=True, sampler="ode") | self.teacher_guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        """The error of x0 under the truncated weight max(SNR, 1) (section 4)."""
        process, edges = roles.process, edges_of(roles, batch)
        t, s = drawn_step(divided(edges, self.divided * (len(edges) - 1)), batch)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        aim = landing_on(process, x_t, t, ddim(field, x_t, t, s, substeps=self.substeps), s)
        scalars = self.teacher_guidance.scalars(batch, field)
        error = through(roles.generator, x_t, t, batch.cond, scalars).x0 - aim.x0
        weight = process.logsnr(t).exp().clamp(min=1)
        return {"progressive": (pad_like(weight, error).to(error.dtype) * error.square()).mean()}
