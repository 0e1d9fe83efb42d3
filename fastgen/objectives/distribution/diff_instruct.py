"""Diff-Instruct: integral KL (Luo et al. 2023, arXiv:2305.18455).

grad = fake - real in x0, at EDM's training noise levels: no normaliser, so that large noises dominate.
"""

from dataclasses import dataclass
from typing import final

from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogNormal
from ..parts.base import Batch
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Scores
from ..parts.ops import RowName
from ..parts.rollout import RolloutName
from ..parts.score_matching import DirectionMatching
from ..parts.weights import WeightName, weighed


@final
@dataclass(frozen=True)
class DiffInstruct(DirectionMatching):
    """Integral KL with weight one; the paper has no guidance."""

    weight: WeightName = "none"
    times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "one_step"

    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        return weighed(self.weight, scores, x0)
