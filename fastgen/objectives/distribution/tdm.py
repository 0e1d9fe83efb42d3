"""TDM: trajectory distribution matching (Luo et al. 2025, arXiv:2503.06674).

The student follows its own deterministic trajectory; the end x_s of each segment is matched to the real distribution
at s and above, DMD's direction on the clean prediction of the segment's only call. The fake score is told the segment
and learns its distribution by the score of p(x_t | x_s), which needs no importance weight (derived form; the published
code weighs clean targets instead). With one step this is DMD without regression.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from ...models.roles import Roles
from ...process import Latent
from ..parts.base import Batch
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Scores
from ..parts.needs import Needs
from ..parts.rollout import RolloutName
from ..parts.score_matching import DirectionMatching
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class TDM(DirectionMatching):
    """Trajectory distribution matching; the student steps deterministically.

    Args:
        times: where the two scores are compared, laid over the times above the segment's end.
        fake_times: where the fake score is trained, likewise.
        huber: c that bounds the direction, elementwise d / sqrt(d^2 + c^2), the gradient of a pseudo-Huber distance;
            0 keeps d.
    """

    guidance: AnyGuidance = Fixed(1.0)
    rollout: ClassVar[RolloutName] = "trajectory"
    huber: float = 0.0

    def check(self) -> None:
        if self.huber < 0:
            raise ValueError(f"huber is {self.huber:g}: its sign would not be read, need at least 0")

    @property
    def also(self) -> Needs:
        return Needs(scalars={"fake_score": {"called", "landed"}})

    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        grad = weighed(self.weight, scores, x0)
        if not self.huber:
            return grad
        gap = scores.fake.x0 - scores.real.x0
        return grad / (gap.square() + self.huber**2).sqrt()
