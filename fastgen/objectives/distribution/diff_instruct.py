"""Diff-Instruct: integral KL (Luo et al. 2023, arXiv:2305.18455).

grad = fake - real in x0, at EDM's training noise levels: no normaliser, so that large noises dominate.
"""

from dataclasses import dataclass

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, LogNormal
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import AnyGuidance, Fixed
from ..parts.matching import compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName, surrogate
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class DiffInstruct:
    """Integral KL with weight one.

    Args:
        weight: of the direction.
        guidance: of the scores; the paper has none.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared; "edm" has the paper's weight.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    weight: WeightName = "none"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = LogNormal(-1.2, 1.2)
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
        scores = compare(look, self, roles, batch, landing)
        matched = surrogate(landing.x0, direction(self.weight, scores, landing.x0))
        return {"dm": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))
