"""f-distill: distribution matching under any f-divergence (Xu et al. 2025, arXiv:2502.15681).

DMD2's direction times h(r), see `divergences`; r = p_real / p_fake comes from the GAN's discriminator at the same x_t,
clipped, normalised by its mean at that noise level, and h by its mean over the micro-batch. Reverse KL (h = 1) is DMD2.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ...models.roles import Roles
from ...models.state import RatioMeans
from ...process import Latent, pad_like
from ..parts.base import Batch
from ..parts.divergences import DIVERGENCES, DivergenceName, check_clip
from ..parts.gan import GAN, AnyGAN, check_gives_ratio
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Scores
from ..parts.needs import Needs
from ..parts.rollout import RolloutName
from ..parts.score_matching import DirectionMatching
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class FDistill(DirectionMatching):
    """Distribution matching under an f-divergence, whose ratio the GAN's discriminator gives.

    Args:
        divergence: which one.
        clip: bounds of the ratio.
        keep: share of the old means that the ratio is normalised by, 0 for the batch's own.
    """

    gan: AnyGAN = GAN()
    ratio: int = 5
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "backward_simulation"
    divergence: DivergenceName = "jensen_shannon"
    clip: tuple[float, float] = (0.1, 20.0)
    keep: float = 0.0

    def check(self) -> None:
        check_gives_ratio(self.gan)
        check_clip(self.clip)
        if not 0 <= self.keep < 1:
            raise ValueError(
                f"keep is {self.keep:g}: a share of the old means, need 0 <= keep < 1; 0 is the batch's own"
            )

    @property
    def also(self) -> Needs:
        return Needs(ratio_means=True)

    def direction(self, roles: Roles, batch: Batch, scores: Scores, x0: Latent) -> Latent:
        h = pad_like(self._h(roles, batch, scores), x0).to(x0.dtype)
        return h * weighed(self.weight, scores, x0)

    @torch.no_grad()
    def _h(self, roles: Roles, batch: Batch, scores: Scores) -> Tensor:
        """h(r) of each sample by its mean, [B]."""
        means: RatioMeans = roles["ratio_means"]  # type: ignore[assignment]
        ratio = roles.discriminator.ratio(scores.x_t, scores.t, batch.cond).exp().clamp(*self.clip)
        h = DIVERGENCES[self.divergence].h(means.normalise(ratio, scores.t, rate=self.keep).log())
        return h / h.mean()
