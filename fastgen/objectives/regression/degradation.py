"""DisBack's first part (Zhang et al. 2024, arXiv:2408.15991): the teacher unlearns its data for a student's samples.

A first student's samples are so far from the data that the teacher's score says little of them. The paper trains a
copy of the teacher on them and keeps what it is on the way, then distils from these copies in the reverse order, the
teacher last. Here each of them is what a stage leaves, and the way back is stages of any objective that has a real and
a fake score:

    stages:
      - {name: half, objective: {name: degradation}}
      - {name: whole, objective: {name: degradation}}
      - {name: back, objective: {name: dmd2}, carry: {generator: teacher, real_score: half, fake_score: whole}}
      - {name: home, objective: {name: dmd2}, carry: {fake_score: fake_score}}
"""

from dataclasses import dataclass
from typing import ClassVar, final

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ...seeds import uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.guidance_laws import check_share
from ..parts.needs import Needs
from ..parts.ops import RowName, denoising_loss, renoised
from ..parts.rollout import predicted


@final
@dataclass(frozen=True)
class Degradation:
    """A copy of the teacher learns to denoise what the real score samples in the student's few steps.

    The real score is the first student: the teacher itself, or what a stage before left (`carry`). The stage's
    generator is no student, but the score of one.

    Args:
        dropout: share of rows that see no condition, so that what is left can be guided.
        times: where the loss looks.
        space: row in which errors are squared; "edm" has EDM's weight.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    dropout: float = 0.0
    times: AnyTimeLaw = Uniform()
    space: RowName = "eps"

    def __post_init__(self) -> None:
        check_share(self.dropout)

    @property
    def needs(self) -> Needs:
        return Needs(real_score=True, null=self.dropout > 0)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        noised = renoised(roles, batch, predicted(roles.real_score, roles, batch), law=self.times)
        cond = batch.cond
        if self.dropout:
            cond = cond.dropped(uniform(batch.rng, batch.size) < self.dropout)
        belief = through(roles.generator, noised.x_t, noised.t, cond)
        return {"denoise": denoising_loss(belief, noised, space=self.space)}
