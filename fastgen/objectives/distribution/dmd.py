"""DMD: distribution matching distillation (Yin et al. 2023, arXiv:2311.18828).

grad = (fake - real) / mean|x0 - real| (eq. 7 and 8, in the form of the published code, whose weight has one alpha
less than the text), plus a regression to the teacher's own samples of stored noises (eq. 9) that keeps the modes.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, final

from torch import Tensor

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Uniform
from ...unread import refuse_unread
from ..parts.base import Batch, Landing, Terms
from ..parts.distances import check_huber
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare
from ..parts.needs import Needs
from ..parts.ops import pseudo_huber, surrogate
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class DMD(ScoreMatching):
    """Distribution matching with regression; one step.

    Args:
        regression: weight of the regression term.
        distance: distance of the regression: pseudo-Huber in the denoiser's space, or LPIPS of the images as in the
            paper.
        huber: c of the pseudo-Huber loss.
    """

    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    guidance: AnyGuidance = Fixed(1.0)
    rollout: ClassVar[RolloutName] = "one_step"
    regression: float = 0.25
    distance: Literal["pseudo_huber", "lpips"] = "pseudo_huber"
    huber: float = 0.03

    def check(self) -> None:
        check_huber(self)
        if self.regression < 0:
            raise ValueError(
                f"regression is {self.regression:g}: a negative weight trains away from the teacher's pairs"
            )
        if not self.regression:
            refuse_unread(self, "distance", "huber", why="regression is 0", remedy="set a weight above 0")

    @property
    def also(self) -> Needs:
        return Needs(pairs=True, one_step=True, lpips=self.distance == "lpips")

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self, roles, batch, landing)
        t = batch.full(roles.plan.grids[0][0])
        paired = roles.generator(roles.process.prior(batch.pair.eps, t), t, batch.cond).x0
        terms = {
            "dm": surrogate(landing.x0, weighed(self.weight, scores, landing.x0)),
            "regression": self.regression * self._distance(roles, paired, batch.pair.x0),
        }
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def _distance(self, roles: Roles, x: Latent, y: Latent) -> Tensor:
        if self.distance == "lpips":
            return roles["lpips"](x, y).mean()  # type: ignore[no-any-return]
        return pseudo_huber(x - y, c=self.huber)
