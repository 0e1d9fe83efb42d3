"""f-distill: distribution matching under any f-divergence (Xu et al. 2025, arXiv:2502.15681).

DMD2's direction times h(r), see `divergences`; r = p_real / p_fake comes from the GAN's discriminator at the same x_t,
clipped, normalised by its mean at that noise level, and h by its mean over the micro-batch. Reverse KL (h = 1) is DMD2.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.calls import look
from ...models.roles import Roles
from ...models.state import RatioMeans
from ...process import AnyTimeLaw, Uniform, pad_like
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.divergences import DIVERGENCES, DivergenceName, check_clip
from ..parts.gan import GAN, AnyGAN, check_gives_ratio, generator_terms
from ..parts.guidance import AnyGuidance, Fixed
from ..parts.matching import Scores, compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName, surrogate
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class FDistill:
    """Distribution matching under an f-divergence.

    Args:
        divergence: which one.
        clip: bounds of the ratio.
        keep: share of the old means that the ratio is normalised by, 0 for the batch's own.
        weight: of the direction, beside h.
        guidance: of the scores.
        gan: the adversarial term, whose discriminator gives the ratio.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    divergence: DivergenceName = "jensen_shannon"
    clip: tuple[float, float] = (0.1, 20.0)
    keep: float = 0.0
    weight: WeightName = "l1"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN()
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform()
    fake_space: RowName = "eps"
    ratio: int = 5
    rollout: RolloutName = "backward_simulation"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_gives_ratio(self.gan)
        check_clip(self.clip)
        if not 0 <= self.keep < 1:
            raise ValueError(
                f"keep is {self.keep:g}: a share of the old means, need 0 <= keep < 1; 0 is the batch's own"
            )

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        return reads(guidance=self.guidance, rollout=self.rollout, gan=self.gan) | Needs(ratio_means=True)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land(self.rollout, roles, batch)
        scores = compare(look, self, roles, batch, landing)
        h = pad_like(self._h(roles, batch, scores), landing.x0).to(landing.x0.dtype)
        matched = surrogate(landing.x0, h * direction(self.weight, scores, landing.x0))
        return {"dm": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))

    @torch.no_grad()
    def _h(self, roles: Roles, batch: Batch, scores: Scores) -> Tensor:
        """h(r) of each sample by its mean, [B]."""
        means: RatioMeans = roles["ratio_means"]  # type: ignore[assignment]
        ratio = roles.discriminator.ratio(scores.x_t, scores.t, batch.cond).exp().clamp(*self.clip)
        h = DIVERGENCES[self.divergence].h(means.normalise(ratio, scores.t, rate=self.keep).log())
        return h / h.mean()
