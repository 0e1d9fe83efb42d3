"""VSD: variational score distillation (Wang et al. 2023, ProlificDreamer, arXiv:2305.16213, eq. 9).

With it comes SwiftBrush, its form for images (Nguyen & Tran 2023, arXiv:2312.05239).

grad = sigma^2 (eps_real - eps_fake) = alpha sigma (fake - real) in x0, on a variance-preserving process; on others the
weight is that of the variance-preserving process with the same signal-to-noise ratio.
"""

from dataclasses import dataclass
from typing import final

from ...models.roles import Roles
from ...process import Latent
from ..parts.base import Batch
from ..parts.guidance_laws import AnyGuidance, Fixed, Shared
from ..parts.matching import Scores
from ..parts.rollout import RolloutName
from ..parts.score_matching import DirectionMatching
from ..parts.weights import WeightName, weighed


@final
@dataclass(frozen=True)
class VSD(DirectionMatching):
    """Variational score distillation."""

    weight: WeightName = "vsd"
    guidance: AnyGuidance = Fixed(4.5)
    rollout: RolloutName = "backward_simulation"

    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        return weighed(self.weight, scores, x0)


@final
@dataclass(frozen=True)
class SwiftBrush(DirectionMatching):
    """VSD in one step, both scores guided alike (arXiv:2312.05239); the fake score is a LoRA of large learning rate."""

    weight: WeightName = "vsd"
    guidance: AnyGuidance = Shared(4.5, 4.5)
    rollout: RolloutName = "one_step"

    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        return weighed(self.weight, scores, x0)
