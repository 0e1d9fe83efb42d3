"""DMD2: improved distribution matching distillation (Yin et al. 2024, arXiv:2405.14867).

DMD without its regression: the fake score is updated several times per generator update (section 4.2), a GAN term on
the fake score's features brings in real data (section 4.3), and several steps are trained on the generator's own
intermediate samples (section 4.5).
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
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class DMD2:
    """Distribution matching with two time scales and a GAN term.

    Args:
        weight: of the direction.
        guidance: of the scores.
        gan: the adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
        step_aware: the fake score is told the time of the generator's last call. Otherwise it sees the mixture of
            all steps' samples, and single steps may err in opposite ways.
    """

    weight: WeightName = "l1"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN()
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform()
    fake_space: RowName = "eps"
    ratio: int = 5
    rollout: RolloutName = "backward_simulation"
    step_aware: bool = False

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        aware = Needs(scalars={"fake_score": {"called"}} if self.step_aware else {})
        return reads(guidance=self.guidance, rollout=self.rollout, gan=self.gan) | aware

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land(self.rollout, roles, batch)
        scores = compare(look, self, roles, batch, landing)
        matched = surrogate(landing.x0, direction(self.weight, scores, landing.x0))
        return {"dm": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))
