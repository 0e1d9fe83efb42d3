"""Guidance distillation (Meng et al. 2022, arXiv:2210.03142, stage 1): one call for what guidance makes of two.

The generator is told w and learns the guided prediction at every time; it keeps the teacher's number of steps.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.calls import through
from ...models.roles import Roles
from ...process import ROWS, AnyTimeLaw, Uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import noised
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.solvers import AnyScale, Guidance


@dataclass(frozen=True)
class GuidanceDistillation:
    """Regression on the guided teacher.

    Args:
        teacher_guidance: the scales to be learned; the paper's 0 to 4 for classes are 1 to 5 in Diffusers' convention.
        times: where it is learned.
        space: row in which errors are squared.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    teacher_guidance: AnyScale = Guidance(1.0, 5.0, told=True)
    times: AnyTimeLaw = Uniform()
    space: RowName = "v"

    def __post_init__(self) -> None:
        low, high = self.teacher_guidance.low, self.teacher_guidance.high
        if low < high and not self.teacher_guidance.told:
            raise ValueError(
                f"teacher_guidance is drawn from [{low:g}, {high:g}] and the student is not told: set "
                "teacher_guidance.told=true, or one fixed scale"
            )

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=True) | self.teacher_guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t = self.times.sample(roles.process, batch.size, batch.rng)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        row, scalars = ROWS[self.space], self.teacher_guidance.scalars(batch, field)
        error = through(roles.generator, x_t, t, batch.cond, scalars).output(row) - field(x_t, t).output(row)
        return {"guided": error.square().mean()}
