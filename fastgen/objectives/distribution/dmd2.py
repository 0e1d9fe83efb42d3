"""DMD2: improved distribution matching distillation (Yin et al. 2024, arXiv:2405.14867).

DMD without its regression: the fake score is updated several times per generator update (section 4.2), a GAN term on
the fake score's features brings in real data (section 4.3), and several steps are trained on the generator's own
intermediate samples (section 4.5). Its turns are those of `DirectionMatching`; here stands what is its own.
"""

from dataclasses import dataclass
from typing import final

from ...models.roles import Roles
from ...process import Latent
from ..parts.base import Batch
from ..parts.gan import GAN, AnyGAN
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Scores
from ..parts.needs import Needs
from ..parts.rollout import RolloutName
from ..parts.score_matching import DirectionMatching
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class DMD2(DirectionMatching):
    """Distribution matching with two time scales and a GAN term.

    Args:
        step_aware: the fake score is told the time of the generator's last call. Otherwise it sees the mixture of
            all steps' samples, and single steps may err in opposite ways.
    """

    gan: AnyGAN = GAN()
    ratio: int = 5
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "backward_simulation"
    step_aware: bool = False

    @property
    def also(self) -> Needs:
        return Needs(scalars={"fake_score": {"called"}} if self.step_aware else {})

    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        return weighed(self.weight, scores, x0)
