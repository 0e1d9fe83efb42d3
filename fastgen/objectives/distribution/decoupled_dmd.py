"""Decoupled DMD: guidance augmentation and distribution matching apart (Liu et al. 2025, arXiv:2511.22677).

DMD's guided direction fake - real_w is the sum of fake - real^c, which matches distributions, and (w - 1)
(real^u - real^c), which turns the teacher's guidance into the student's. Each gets renoise levels and a normaliser of
its own; the second works best below the noise level of the student's step. It has no fixed point of its own.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Uniform
from ...unread import refuse_unread
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import generator_terms
from ..parts.guidance_laws import Fixed, GuidanceLaw
from ..parts.matching import Scores, check_floor, compare
from ..parts.needs import Needs
from ..parts.ops import renoised, surrogate
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class DecoupledDMD(ScoreMatching):
    """Distribution matching with a separate augmentation by guidance; the scores that are matched have none.

    Args:
        weight: weight of both directions.
        augmentation: w, the guidance scale; 1 leaves the augmentation out.
        augmentation_times: where the guidance is read, laid over the times below the student's step.
        below_step: whether they are; otherwise they run over all times.
        floor: floor of the normaliser in "l1", for both; the published code's, which keeps the looks below the last
            step from outweighing all others.
    """

    ratio: int = 5
    guidance: ClassVar[GuidanceLaw] = Fixed(1.0)
    rollout: RolloutName = "backward_simulation"
    augmentation: float = 7.0
    augmentation_times: AnyTimeLaw = Uniform(0.02, 1.0)
    below_step: bool = True
    floor: float = 0.1

    def check(self) -> None:
        check_floor(self)
        if self.augmentation == 1:
            why, remedy = "augmentation is 1, which is none", "set another one"
            refuse_unread(self, "augmentation_times", "below_step", why=why, remedy=remedy)

    @property
    def also(self) -> Needs:
        return Needs(null=self.augmentation != 1)

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self, roles, batch, landing, floor=self.floor)
        terms = {"dm": surrogate(landing.x0, weighed(self.weight, scores, landing.x0))}
        if self.augmentation != 1:
            terms["augmentation"] = surrogate(landing.x0, self._augmentation(roles, batch, landing))
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def _augmentation(self, roles: Roles, batch: Batch, landing: Landing) -> Latent:
        """(w - 1) (real^u - real^c): the direction of a fake score that is the unconditional real one."""
        until = landing.t if self.below_step else None
        noised = renoised(roles, batch, landing.x, law=self.augmentation_times, s=landing.s, until=until)
        real = look(roles.real_score, noised.x_t, noised.t, batch.cond)
        null = look(roles.real_score, noised.x_t, noised.t, batch.cond.unconditional)
        scores = Scores(noised, real, null, self.floor)
        return (self.augmentation - 1) * weighed(self.weight, scores, landing.x0)
