"""SiDA: adversarial score identity distillation (Zhou et al. 2024, arXiv:2410.14919).

With it comes its form for a few steps with guidance in the fake score (Zhou et al. 2025, arXiv:2505.12674).

SiD with alpha = 1 plus a GAN term whose discriminator is the fake score's own encoder. It looks where the scores look:
the generator is judged at the x_t of SiD's terms, real and generated samples at the x_t and with the noise that the
fake score is taught on. In the published codes the generator's term has the batch's mean weight in SiDA, each sample's
own in the later few-step form.
"""

from dataclasses import dataclass
from typing import final

from ...process import AnyTimeLaw, Karras, LogNormal, Uniform
from ..parts.gan import GAN, AnyGAN
from ..parts.guidance_laws import AnyGuidance, Fixed, Zero
from ..parts.ops import RowName
from ..parts.rollout import RolloutName
from .sid import IdentityMatching

SHARED = GAN(weight=1e-4, learned=0.0326, joint=True, paired=True, even=True)
"""SiDA's: the weight 0.01 beside 100 times the summed integrand is 1e-4 of its mean. The discriminator's loss counts
once a sample under E[lambda] / 2 there, beside a denoising loss summed over d elements: E[lambda] / (2 d) of its mean,
with EDM's E[lambda] = 4 + exp(2.4 + 2.88) = 200.4 and d = 3 x 32 x 32. It goes with 1 / d."""


@final
@dataclass(frozen=True)
class SiDA(IdentityMatching):
    """Adversarial SiD; `gan.learned` is that of 32 x 32 images in three channels."""

    gan: AnyGAN = SHARED
    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "one_step"


@final
@dataclass(frozen=True)
class FewStepSiD(IdentityMatching):
    """Adversarial SiD on a mixture of steps (arXiv:2505.12674): one fake score suffices, as all share one target."""

    gan: AnyGAN = GAN(weight=1e-3, learned=0.5, joint=True, paired=True)
    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    guidance: AnyGuidance = Zero()
    rollout: RolloutName = "backward_simulation"
