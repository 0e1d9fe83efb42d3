"""VSD: variational score distillation (Wang et al. 2023, ProlificDreamer, arXiv:2305.16213, eq. 9).

With it comes SwiftBrush, its form for images (Nguyen & Tran 2023, arXiv:2312.05239).

grad = sigma^2 (eps_real - eps_fake) = alpha sigma (fake - real) in x0, on a variance-preserving process; on others the
weight is that of the variance-preserving process with the same signal-to-noise ratio.
"""

from dataclasses import dataclass

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import AnyGuidance, Fixed, Shared
from ..parts.matching import compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName, surrogate
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class VSD:
    """Variational score distillation.

    Args:
        weight: of the direction.
        guidance: of the scores.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    weight: WeightName = "vsd"
    guidance: AnyGuidance = Fixed(4.5)
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform()
    fake_space: RowName = "eps"
    ratio: int = 1
    rollout: RolloutName = "backward_simulation"

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
        return {"vsd": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))


@dataclass(frozen=True)
class SwiftBrush(VSD):
    """VSD in one step, both scores guided alike (arXiv:2312.05239); the fake score is a LoRA of large learning rate."""

    guidance: AnyGuidance = Shared(4.5, 4.5)
    rollout: RolloutName = "one_step"
