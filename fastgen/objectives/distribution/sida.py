"""SiDA: adversarial score identity distillation (Zhou et al. 2024, arXiv:2410.14919).

With it comes its form for a few steps with guidance in the fake score (Zhou et al. 2025, arXiv:2505.12674).

SiD with alpha = 1 plus a GAN term whose discriminator is the fake score's own encoder. It looks where the scores look:
the generator is judged at the x_t of SiD's terms, real and generated samples at the x_t and with the noise that the
fake score is taught on. In the published codes the generator's term has the batch's mean weight in SiDA, each sample's
own in the later few-step form.
"""

from dataclasses import dataclass

from ...process import AnyTimeLaw, Uniform
from ..parts.gan import GAN, AnyGAN
from ..parts.guidance import AnyGuidance, Zero
from ..parts.ops import RowName
from ..parts.rollout import RolloutName
from .sid import SiD

SHARED = GAN(weight=1e-4, learned=0.0326, joint=True, paired=True, even=True)
"""SiDA's: the weight 0.01 beside 100 times the summed integrand is 1e-4 of its mean. The discriminator's loss counts
once a sample under E[lambda] / 2 there, beside a denoising loss summed over d elements: E[lambda] / (2 d) of its mean,
with EDM's E[lambda] = 4 + exp(2.4 + 2.88) = 200.4 and d = 3 x 32 x 32. It goes with 1 / d."""


@dataclass(frozen=True)
class SiDA(SiD):
    """Adversarial SiD; `gan.learned` is that of 32 x 32 images in three channels."""

    alpha: float = 1.0
    gan: AnyGAN = SHARED


@dataclass(frozen=True)
class FewStepSiD(SiD):
    """Adversarial SiD on a mixture of steps (arXiv:2505.12674): one fake score suffices, as all share one target."""

    alpha: float = 1.0
    guidance: AnyGuidance = Zero()
    gan: AnyGAN = GAN(weight=1e-3, learned=0.5, joint=True, paired=True)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_space: RowName = "eps"
    rollout: RolloutName = "backward_simulation"
