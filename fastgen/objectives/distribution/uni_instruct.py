"""Uni-Instruct: f-divergences along the diffusion by their Fisher form (Wang et al. 2025, arXiv:2505.20755).

D_f is an integral over time of E[h(r) |s_real - s_fake|^2]; its gradient is that of

    (h - r h') |real - fake|^2 + 2 h (real - fake) (fake - x0)

with all networks frozen and the graph through every x_t, that in the ratio included. This is the form derived from the
theorem, checked on Gaussians; the published code differs from its paper. Reverse KL is SiD with alpha = 1/2.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Karras, LogNormal, pad_like
from ..parts.base import Batch, Landing, Terms
from ..parts.divergences import DIVERGENCES, DivergenceName, check_clip
from ..parts.gan import AnyGAN, check_gives_ratio, generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Scores, compare
from ..parts.ops import RowName
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import WEIGHTS
from .sida import SHARED


@final
@dataclass(frozen=True)
class UniInstruct(ScoreMatching):
    """Fisher-type f-divergence with the ratio from the discriminator.

    Args:
        weight: weight of the integrand and of the GAN term.
        gan: the adversarial term, SiDA's, whose discriminator gives the ratio.
        divergence: which one.
        clip: bounds of the ratio.
    """

    gan: AnyGAN = SHARED
    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "one_step"
    divergence: DivergenceName = "jeffreys"
    clip: tuple[float, float] = (0.1, 20.0)

    @property
    def weighs_gan(self) -> bool:
        return True

    def check(self) -> None:
        check_gives_ratio(self.gan)
        check_clip(self.clip)

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(through, self, roles, batch, landing)
        log_ratio = pad_like(self._log_ratio(roles, batch, scores), landing.x0)
        divergence = DIVERGENCES[self.divergence]
        h, slope = divergence.h(log_ratio), divergence.slope(log_ratio)
        weight = WEIGHTS[self.weight](scores, landing.x0)
        gap = scores.real.x0 - scores.fake.x0
        fisher = (h - slope) * gap.square() + 2 * h * gap * (scores.fake.x0 - scores.truth)
        terms = {"fisher": (weight * fisher).mean()}
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised, weight=weight)

    def _log_ratio(self, roles: Roles, batch: Batch, scores: Scores) -> Tensor:
        """log r [B], clipped; its slope by x_t is s_real - s_fake, which needs no graph through the discriminator."""
        with torch.no_grad():
            ratio = roles.discriminator.ratio(scores.x_t, scores.t, batch.cond).exp()
            log_ratio, slope = ratio.clamp(*self.clip).log(), scores.real.score - scores.fake.score
        return log_ratio + (slope * (scores.x_t - scores.x_t.detach())).flatten(1).sum(dim=1)
