"""K-DMD: distribution matching with a coach of few steps (SnapGen++, 2026, arXiv:2601.08303).

The two scores say where a sample should go, but they are right only in the mean over many samples. A model that samples
in few steps already, such as the teacher with a published LoRA, is right about each call. This coach is asked about the
very x_t that the student's last call was given, and `knowledge` |v - v_coach|^2 is added to DMD2's direction;
velocities are eps - x0 on every process. Both terms rest where the coach's samples follow the teacher's law and the
student is the coach. Elsewhere the student comes to rest between the two, and at `knowledge` 0 this is `dmd2`.

The coach is asked at the student's times, which should therefore be the coach's own. It is what `carry: {coach: ...}`
names: an earlier stage, or the `init`, beside which `carry: {generator: teacher}` starts the student from the teacher.
The paper's student is a smaller network, and its fake score starts as the student does; here all of them start as the
teacher's network, and so alike.

The paper's objective (eq. 10) adds three terms without a weight: DMD's, the squared norm of the velocities' difference
(eq. 6), and that of the last blocks' features, the student's through a learned projection (eq. 7). Which mean those
norms and DMD's direction (eq. 9, without a normaliser) are taken over is not told; here the regression is a mean over
elements, and the features are left out. Its supplement trains LoRAs of rank 64 for 10,000 updates of 512 images at a
learning rate of 1e-4, a student's update to five of the fake score's, under guidance 4 on times shifted by 3.
"""

from dataclasses import dataclass
from typing import final

from ...models.calls import look
from ...models.roles import Roles
from ...process import Prediction
from ..parts.anchors import VELOCITY
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare
from ..parts.needs import Needs
from ..parts.ops import surrogate
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class KnowledgeGuidedDMD(ScoreMatching):
    """Distribution matching, and a regression to what a coach of few steps predicts where the student is called.

    Args:
        knowledge: weight of the regression, 1 in the paper; 0 asks no coach.
    """

    ratio: int = 5
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "backward_simulation"
    knowledge: float = 1.0

    def check(self) -> None:
        if self.knowledge < 0:
            raise ValueError(f"knowledge is {self.knowledge:g}: a negative weight drives the student off, need >= 0")

    @property
    def also(self) -> Needs:
        return Needs(coach=self.knowledge > 0)

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self.at(batch.images), roles, batch, landing)
        terms = {"dm": surrogate(landing.x0, weighed(self.weight, scores, landing.x0))}
        if self.knowledge:
            assert landing.x_t is not None, "the rollouts that have a name tell it"
            mine = Prediction.of_x0(roles.process, landing.x_t, landing.t, landing.x0).output(VELOCITY)
            coached = look(roles.coach, landing.x_t, landing.t, batch.cond).output(VELOCITY)
            terms["knowledge"] = self.knowledge * (mine - coached).square().mean()
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)
