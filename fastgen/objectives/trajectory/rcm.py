"""rCM: continuous-time consistency, regularised by a score (Zheng et al. 2025, arXiv:2510.08431, and its code).

`scm` keeps the teacher's variety and leaves details blurred, matching of distributions sharpens and narrows. Both train
one generator: sCM's tangents on noised images, and DMD's direction on the generator's own samples.

The code's tangent is warmed up in x alone; here, as in the paper, with the derivative. Its c is 0.1 for samples of
deviation 1, which is 0.05 in `scm`'s unit.
"""

from dataclasses import dataclass
from typing import final

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, LogNormal, Uniform
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare
from ..parts.needs import Needs
from ..parts.ops import RowName, surrogate
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.solvers import Guidance
from ..parts.weights import weighed
from .scm import SimplifiedConsistency, tangent_errors

TANGENTS = SimplifiedConsistency(
    teacher_guidance=Guidance(5.0, 5.0),
    times=LogNormal(-0.8, 1.6),
    warmup=1_000_000,
    normaliser=0.05,
    weighting="uniform",
)


@final
@dataclass(frozen=True)
class RegularisedConsistency(ScoreMatching):
    """rCM.

    Args:
        consistency: settings of the tangents, as of `scm`.
        tangent: weight of their mean squared error, beside 1 of the direction.
    """

    times: AnyTimeLaw = Uniform(shift=5.0)
    fake_times: AnyTimeLaw = Uniform(shift=5.0)
    fake_space: RowName = "v"
    ratio: int = 4
    guidance: AnyGuidance = Fixed(5.0)
    rollout: RolloutName = "backward_simulation"
    consistency: SimplifiedConsistency = TANGENTS
    tangent: float = 100.0

    def check(self) -> None:
        """Refuses what its turns cannot train."""
        if self.consistency.weighting != "uniform":
            raise ValueError("consistency.weighting is adaptive, which trains a weight of its own: set it to uniform")
        if self.consistency.teacher_guidance.told:
            raise ValueError("consistency.teacher_guidance.told is true, the scores are not: set it to false")

    @property
    def also(self) -> Needs:
        return self.consistency.needs

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self.at(batch.images), roles, batch, landing)
        matched = surrogate(landing.x0, weighed(self.weight, scores, landing.x0))
        _, errors = tangent_errors(self.consistency, roles, batch)
        terms = {"dm": matched, "tangent": self.tangent * errors.mean()}
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)
