"""SiDA: adversarial score identity distillation (Zhou et al. 2024, arXiv:2410.14919), and its form for a few steps with
guidance in the fake score (Zhou et al. 2025, arXiv:2505.12674).

SiD with alpha = 1 plus a GAN term whose discriminator is the fake score's own encoder, each sample's term under the
weight that SiD gives it.
"""

from dataclasses import dataclass

from ..process import AnyTimeLaw, LogNormal, Uniform
from .gan import GAN, AnyGAN
from .guidance import AnyGuidance, Zero
from .ops import RowName
from .rollout import RolloutName
from .sid import SiD


@dataclass(frozen=True)
class SiDA(SiD):
    """Adversarial SiD; the paper's GAN weight of 0.01 beside 100 times the summed integrand is 1e-4 of its mean."""

    alpha: float = 1.0
    gan: AnyGAN = GAN(weight=1e-4, learned=1.0, times=LogNormal(-1.2, 1.2), paired=True)


@dataclass(frozen=True)
class FewStepSiD(SiD):
    """Adversarial SiD on a uniform mixture of steps: one fake score suffices, as all steps share one target."""

    alpha: float = 1.0
    guidance: AnyGuidance = Zero()
    gan: AnyGAN = GAN(weight=1e-3, learned=1.0, paired=True)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_space: RowName = "eps"
    rollout: RolloutName = "backward_simulation"
