"""SMD: score of mixture distillation (Jayashankar et al. 2025, arXiv:2502.09609).

Generated samples q are drawn to the mixture m = a p + (1 - a) q of the teacher's p and themselves, for shares a drawn
anew: the gradient of the skew Jensen-Shannon divergence [a KL(p | m) + (1 - a) KL(q | m)] / (a (1 - a)) is

    gate / a (fake - real),    gate = sigmoid(l + log a / (1 - a)),    l = log p / q at x_t,

DMD2's direction at a = 1. The GAN's discriminator gives l, and is taught by no classification: the score of the mixture
is gate real + (1 - gate) fake, and has to be the fake score's on generated and the real score's on real samples,

    (1 - a) gate^2 |real - fake|^2 on generated x_t  +  a (1 - gate)^2 |real - fake|^2 on real x_t,

whose least value is at that l wherever the two scores differ. The authors draw a = 0 for a quarter of these, which
teaches nothing, and keep this loss out of the fake score's own weights unless told otherwise; here it trains both.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...models.calls import guided, look
from ...models.conditioning import Conditioning
from ...models.roles import Roles
from ...process import ROWS, Time, joined, pad_like
from ...seeds import uniform
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import GAN, AnyGAN, acts, check_gives_ratio
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare, fake_denoising, scalars_of
from ..parts.ops import Noised, renoised, surrogate
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import weighed

BESIDE = GAN(learned=1.0, joint=True, paired=True)
"""At the noisy samples that the scores are compared on, real and generated ones with the same noises."""


@final
@dataclass(frozen=True)
class ScoreOfMixture(ScoreMatching):
    """Distribution matching towards mixtures of the data and the generated samples, which the discriminator weighs.

    Args:
        shares: between which a is drawn for the generator; (1, 1) is DMD2.
    """

    gan: AnyGAN = BESIDE
    ratio: int = 5
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "one_step"
    shares: tuple[float, float] = (0.5, 1.0)

    def check(self) -> None:
        check_gives_ratio(self.gan)
        if (self.gan.joint, self.gan.paired) != (True, True) or self.gan.one_pass or self.gan.even:
            raise ValueError(
                "gan has other settings than joint and paired: the discriminator looks where the scores do, at real "
                "and generated samples with the same noises; leave them out"
            )
        if self.gan.r1 or self.gan.approximate_r1 or self.gan.approximate_r2 or self.gan.feature_r1:
            raise ValueError(
                "gan.r1, approximate_r1, approximate_r2 and feature_r1 steady a classification, and here is none: set "
                "them to 0"
            )
        low, high = self.shares
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"shares are {low:g} to {high:g}: those of the data in a mixture, need 0 < low <= high <= 1"
            )

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self.at(batch.images), roles, batch, landing)
        low, high = self.shares
        a = low + (high - low) * uniform(batch.rng, batch.size)
        known = _gate_logit(roles, scores.x_t, scores.t, batch.cond, a)
        factor = pad_like(known.detach().sigmoid() / a, landing.x0).to(landing.x0.dtype)
        terms = {"dm": surrogate(landing.x0, factor * weighed(self.weight, scores, landing.x0))}
        return terms | ({"gan": self.gan.weight * softplus(-known).mean()} if acts(self.gan, batch) else {})

    def learned(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        noised = renoised(roles, batch, landing.x, law=self.fake_times, s=landing.s)
        terms = {"denoise": fake_denoising(self, roles, batch, landing, noised)}
        real = Noised.of(roles.process, batch.x0, noised.t, noised.eps)
        x_t, t = torch.cat([noised.x_t, real.x_t]), joined([noised.t, real.t])
        cond, a = Conditioning.cat([batch.cond, batch.cond]), uniform(batch.rng, batch.size)
        of_fake, of_real = _gate_logit(roles, x_t, t, cond, torch.cat([a, a])).sigmoid().chunk(2)
        apart_fake, apart_real = self._apart(roles, batch, landing, x_t, t, cond).chunk(2)
        mixed = (1 - a) * of_fake.square() * apart_fake + a * (1 - of_real).square() * apart_real
        return terms | {"gan": self.gan.learned * mixed.mean()}

    def _apart(self, roles: Roles, batch: Batch, landing: Landing, x_t: Tensor, t: Time, cond: Conditioning) -> Tensor:
        """Mean squared difference of the two scores in the row of the fake score's errors, [2 B]."""
        row, scales = ROWS[self.fake_space], self.guidance.drawn(batch.shared_rng)
        scalars = {name: torch.cat([value, value]) for name, value in scalars_of(roles, landing).items()}
        real = guided(look, roles.real_score, x_t, t, cond, w=scales.real)
        fake = guided(look, roles.fake_score, x_t, t, cond, scalars, w=scales.fake)
        return (real.output(row) - fake.output(row)).square().flatten(1).mean(dim=1)


def _gate_logit(roles: Roles, x_t: Tensor, t: Time, cond: Conditioning, a: Tensor) -> Tensor:
    """l + log a / (1 - a), [B]."""
    logits: Tensor = roles.discriminator(x_t, t, cond)
    return logits.mean(dim=1) + torch.logit(a)
