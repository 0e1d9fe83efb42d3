"""TDM: trajectory distribution matching (Luo et al. 2025, arXiv:2503.06674).

The student follows its own deterministic trajectory; the end x_s of each segment is matched to the real distribution
at s and above, DMD's direction on the clean prediction of the segment's only call. The fake score is told the segment
and learns its distribution by the score of p(x_t | x_s), which needs no importance weight (derived form; the published
code weighs clean targets instead). With one step this is DMD without regression.
"""

from dataclasses import dataclass

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import AnyGuidance, Fixed
from ..parts.matching import compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName, surrogate
from ..parts.rollout import land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class TDM:
    """Trajectory distribution matching; the student steps deterministically.

    Args:
        huber: c that bounds the direction, elementwise d / sqrt(d^2 + c^2), the gradient of a pseudo-Huber distance;
            0 keeps d.
        weight: of the direction.
        guidance: of the scores.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared, laid over the times above the segment's end.
        fake_times: where the fake score is trained, likewise.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
    """

    huber: float = 0.0
    weight: WeightName = "l1"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform()
    fake_space: RowName = "eps"
    ratio: int = 1

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        told = Needs(scalars={"fake_score": {"called", "landed"}})
        return reads(guidance=self.guidance, rollout="trajectory", gan=self.gan) | told

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land("trajectory", roles, batch)
        scores = compare(look, self, roles, batch, landing)
        grad = direction(self.weight, scores, landing.x0)
        if self.huber:
            gap = scores.fake.x0 - scores.real.x0
            grad = grad / (gap.square() + self.huber**2).sqrt()
        return {"dm": surrogate(landing.x0, grad)} | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed("trajectory", roles, batch))
