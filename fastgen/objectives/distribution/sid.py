"""SiD: score identity distillation (Zhou et al. 2024, arXiv:2404.04057), and SiD-LSG (arXiv:2406.01561).

The Fisher divergence E|real - fake|^2 has, besides its plain form, the value of (real - fake)(real - x0) by the score
identities. The loss is the second less alpha times the first, with the graph through both networks' inputs:

    (real - fake) [(real - x0) - alpha (real - fake)] / mean|x0 - real|

alpha = 1/2 is the unbiased gradient of the Fisher divergence; the paper finds 1 to 1.2 best.
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Karras, LogNormal, Uniform
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed, LongShort
from ..parts.matching import Scores, compare
from ..parts.ops import RowName
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import WEIGHTS


def identity_loss(scores: Scores, *, alpha: float, weight: Tensor) -> Tensor:
    """SiD's integrand, averaged over all elements."""
    gap = scores.real.x0 - scores.fake.x0
    return (weight * gap * (scores.real.x0 - scores.truth - alpha * gap)).mean()


@dataclass(frozen=True)
class IdentityMatching(ScoreMatching):
    """What the SiD papers share; the generator's loss has the sign of 1 - alpha and is no measure of progress.

    Args:
        weight: weight of the integrand and of the GAN term.
        alpha: weight of the correction.
    """

    alpha: float = 1.0

    @property
    @final
    def weighs_gan(self) -> bool:
        """Always: the GAN term has the weight of the integrand."""
        return True

    @final
    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        """The integrand, and the GAN term under the same weight."""
        scores = compare(through, self, roles, batch, landing)
        weight = WEIGHTS[self.weight](scores, landing.x0)
        matched = identity_loss(scores, alpha=self.alpha, weight=weight)
        return {"sid": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised, weight=weight)


@final
@dataclass(frozen=True)
class SiD(IdentityMatching):
    """Score identity distillation; the generator's loss has the sign of 1 - alpha and is no measure of progress."""

    alpha: float = 1.2
    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "one_step"


@final
@dataclass(frozen=True)
class SiDLSG(IdentityMatching):
    """SiD with long and short guidance (arXiv:2406.01561): one scale in both scores and the fake score's training."""

    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    guidance: AnyGuidance = LongShort(2.0)
    rollout: RolloutName = "one_step"
