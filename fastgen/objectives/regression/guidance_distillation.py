"""Guidance distillation (Meng et al. 2022, arXiv:2210.03142, stage 1): one call for what guidance makes of two.

The generator is told w and learns the guided prediction at every time; it keeps the teacher's number of steps.

Adapter guidance distillation (AGD, Jensen & Sadat 2025, arXiv:2503.07274) is the same with adapters of about 2 % of the
weights (`sharing: lora`), learned where the guided teacher passes (`route`): noised images are not where a guided
sampler goes. There no images are needed, and what the teacher is asked for a step is what is learned of it. The paper's
adapters are told w in each attention layer, here a LoRA is told it in the time embedding.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...models.calls import Scalars, through
from ...models.conditioning import Conditioning
from ...models.roles import Roles
from ...process import ROWS, AnyTimeLaw, Latent, Prediction, Uniform
from ...unread import refuse_unread
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import noised
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.routes import in_rows, route_of, teacher_states
from ..parts.solvers import AnyScale, Guidance


@dataclass(frozen=True)
class Lesson:
    """What the guided teacher believes of x_t, and what its student is told of both."""

    x_t: Latent
    belief: Prediction
    cond: Conditioning
    scalars: Scalars


@dataclass(frozen=True)
class GuidanceDistillation:
    """Regression on the guided teacher.

    Args:
        teacher_guidance: the scales to be learned; the paper's 0 to 4 for classes are 1 to 5 in Diffusers' convention.
        times: where noised images are learned.
        route: intervals of the guided teacher's own way from noise to data, each with a state that is learned in the
            place of noised images; one sample makes so many rows. 0 for images.
        space: row in which errors are squared.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    teacher_guidance: AnyScale = Guidance(1.0, 5.0, told=True)
    times: AnyTimeLaw = Uniform()
    route: int = 0
    space: RowName = "v"

    def __post_init__(self) -> None:
        low, high = self.teacher_guidance.low, self.teacher_guidance.high
        if low < high and not self.teacher_guidance.told:
            raise ValueError(
                f"teacher_guidance is drawn from [{low:g}, {high:g}] and the student is not told: set "
                "teacher_guidance.told=true, or one fixed scale"
            )
        if self.route < 0 or self.route == 1:
            raise ValueError(f"route is {self.route}: need 0, noised images, or at least 2, as one ends with the noise")
        if self.route:
            refuse_unread(self, "times", why=f"route is {self.route}, which has times of its own", remedy="set route=0")

    @property
    def needs(self) -> Needs:
        return Needs(images=not self.route, real_score=True) | self.teacher_guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        taught, row = self._passed(roles, batch) if self.route else self._noised(roles, batch), ROWS[self.space]
        said = through(roles.generator, taught.x_t, taught.belief.t, taught.cond, taught.scalars)
        return {"guided": (said.output(row) - taught.belief.output(row)).square().mean()}

    def _noised(self, roles: Roles, batch: Batch) -> Lesson:
        t = self.times.sample(roles.process, batch.size, batch.rng)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        return Lesson(x_t, field(x_t, t), batch.cond, self.teacher_guidance.scalars(batch, field))

    def _passed(self, roles: Roles, batch: Batch) -> Lesson:
        """All states that the teacher passes on its way from noise, and its beliefs there."""
        field, edges = self.teacher_guidance.field(roles, batch), route_of(roles.process, self.route, shift=1.0)
        x_t, beliefs = zip(*teacher_states(roles, batch, field, edges), strict=True)
        told = {name: w.repeat(self.route) for name, w in self.teacher_guidance.scalars(batch, field).items()}
        return Lesson(torch.cat(x_t), in_rows(beliefs), Conditioning.cat([batch.cond] * self.route), told)
