"""SiD: score identity distillation (Zhou et al. 2024, arXiv:2404.04057), and SiD-LSG (arXiv:2406.01561).

The Fisher divergence E|real - fake|^2 has, besides its plain form, the value of (real - fake)(real - x0) by the score
identities. The loss is the second less alpha times the first, with the graph through both networks' inputs:

    (real - fake) [(real - x0) - alpha (real - fake)] / mean|x0 - real|

alpha = 1/2 is the unbiased gradient of the Fisher divergence; the paper finds 1 to 1.2 best.
"""

from dataclasses import dataclass

from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Karras, LogNormal, Uniform
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import AnyGuidance, Fixed, LongShort
from ..parts.matching import Scores, compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WEIGHTS, WeightName


def identity_loss(scores: Scores, *, alpha: float, weight: Tensor) -> Tensor:
    """SiD's integrand, averaged over all elements."""
    gap = scores.real.x0 - scores.fake.x0
    return (weight * gap * (scores.real.x0 - scores.truth - alpha * gap)).mean()


@dataclass(frozen=True)
class SiD:
    """Score identity distillation; the generator's loss has the sign of 1 - alpha and is no measure of progress.

    Args:
        alpha: of the correction.
        weight: of the integrand and of the GAN term.
        guidance: of the scores.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared; "edm" has the paper's weight.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    alpha: float = 1.2
    weight: WeightName = "l1"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    ratio: int = 1
    rollout: RolloutName = "one_step"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        return reads(guidance=self.guidance, rollout=self.rollout, gan=self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land(self.rollout, roles, batch)
        scores = compare(through, self, roles, batch, landing)
        weight = WEIGHTS[self.weight](scores, landing.x0)
        matched = identity_loss(scores, alpha=self.alpha, weight=weight)
        return {"sid": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised, weight=weight)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))


@dataclass(frozen=True)
class SiDLSG(SiD):
    """SiD with long and short guidance (arXiv:2406.01561): one scale in both scores and the fake score's training."""

    alpha: float = 1.0
    guidance: AnyGuidance = LongShort(2.0)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_space: RowName = "eps"
