"""Uni-Instruct: f-divergences along the diffusion by their Fisher form (Wang et al. 2025, arXiv:2505.20755).

D_f is an integral over time of E[h(r) |s_real - s_fake|^2]; its gradient is that of

    (h - r h') |real - fake|^2 + 2 h (real - fake) (fake - x0)

with all networks frozen and the graph through every x_t, that in the ratio included. This is the form derived from the
theorem, checked on Gaussians; the published code differs from its paper. Reverse KL is SiD with alpha = 1/2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Karras, LogNormal, pad_like
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.divergences import DIVERGENCES, DivergenceName, check_clip
from ..parts.gan import AnyGAN, check_gives_ratio, generator_terms
from ..parts.guidance import AnyGuidance, Fixed
from ..parts.matching import Scores, compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WEIGHTS, WeightName
from .sida import SHARED


@dataclass(frozen=True)
class UniInstruct:
    """Fisher-type f-divergence with the ratio from the discriminator.

    Args:
        divergence: which one.
        clip: bounds of the ratio.
        weight: of the integrand and of the GAN term.
        gan: the adversarial term, SiDA's, whose discriminator gives the ratio.
        guidance: of the scores.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    divergence: DivergenceName = "jeffreys"
    clip: tuple[float, float] = (0.1, 20.0)
    weight: WeightName = "l1"
    gan: AnyGAN = SHARED
    guidance: AnyGuidance = Fixed(1.0)
    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    ratio: int = 1
    rollout: RolloutName = "one_step"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_gives_ratio(self.gan)
        check_clip(self.clip)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        return reads(guidance=self.guidance, rollout=self.rollout, gan=self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land(self.rollout, roles, batch)
        scores = compare(through, self, roles, batch, landing)
        log_ratio = pad_like(self._log_ratio(roles, batch, scores), landing.x0)
        divergence = DIVERGENCES[self.divergence]
        h, slope = divergence.h(log_ratio), divergence.slope(log_ratio)
        weight = WEIGHTS[self.weight](scores, landing.x0)
        gap = scores.real.x0 - scores.fake.x0
        fisher = (h - slope) * gap.square() + 2 * h * gap * (scores.fake.x0 - scores.truth)
        terms = {"fisher": (weight * fisher).mean()}
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised, weight=weight)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))

    def _log_ratio(self, roles: Roles, batch: Batch, scores: Scores) -> Tensor:
        """log r [B], clipped; its slope by x_t is s_real - s_fake, which needs no graph through the discriminator."""
        with torch.no_grad():
            ratio = roles.discriminator.ratio(scores.x_t, scores.t, batch.cond).exp()
            log_ratio, slope = ratio.clamp(*self.clip).log(), scores.real.score - scores.fake.score
        return log_ratio + (slope * (scores.x_t - scores.x_t.detach())).flatten(1).sum(dim=1)
