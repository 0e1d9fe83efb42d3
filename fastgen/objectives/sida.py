"""SiDA: adversarial score identity distillation (Zhou et al. 2024, arXiv:2410.14919), and its form for a few steps with
guidance in the fake score (Zhou et al. 2025, arXiv:2505.12674).

SiD with alpha = 1 plus a GAN term whose discriminator is the fake score's own encoder, each sample's term under the
weight that SiD gives it.
"""

from dataclasses import dataclass

from ..models.roles import Roles
from ..process import AnyTimeLaw, LogNormal, Uniform
from .base import Batch, Terms, Turn, check_ratio
from .gan import GAN, AnyGAN, discriminator_losses, generator_loss
from .guidance import AnyGuidance, Fixed, Zero
from .matching import compare, cycle_of, fake_denoising, reads
from .ops import RowName, through
from .rollout import RolloutName, land, landed
from .sid import identity_loss
from .weights import WEIGHTS, WeightName


@dataclass(frozen=True)
class SiDA:
    """Score identity distillation with an adversarial term.

    Args:
        alpha: of SiD's correction.
        weight: of SiD's integrand and of the GAN term.
        gan: the adversarial term; the paper's 0.01 beside a loss 100 times the summed integrand is 1e-4 of its mean.
        gan_from: images of the generator before its GAN term begins.
        guidance: of the scores.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    alpha: float = 1.0
    weight: WeightName = "l1"
    gan: AnyGAN = GAN(weight=1e-4, learned=1.0, times=LogNormal(-1.2, 1.2), paired=True)
    gan_from: int = 0
    guidance: AnyGuidance = Fixed(1.0)
    times: AnyTimeLaw = Uniform(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    ratio: int = 1
    rollout: RolloutName = "one_step"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> frozenset[str]:
        return reads(guidance=self.guidance, rollout=self.rollout, gan=self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land(self.rollout, roles, batch)
        scores = compare(through, self, roles, batch, landing)
        weight = WEIGHTS[self.weight](scores, landing.x0)
        terms = {"sid": identity_loss(scores, alpha=self.alpha, weight=weight)}
        if self.gan.weight and batch.images >= self.gan_from:
            adversarial = weight.flatten() * generator_loss(self.gan, roles, batch, landing)
            terms["gan"] = self.gan.weight * adversarial.mean()
        return terms

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        landing = landed(self.rollout, roles, batch)
        terms = {"denoise": fake_denoising(self, roles, batch, landing)}
        if self.gan.weight:
            terms |= discriminator_losses(self.gan, roles, batch, landing)
        return terms


@dataclass(frozen=True)
class FewStepSiD(SiDA):
    """SiDA on a uniform mixture of steps: one fake score suffices, since all steps share one target distribution."""

    gan: AnyGAN = GAN(weight=1e-3, learned=1.0, paired=True)
    guidance: AnyGuidance = Zero()
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_space: RowName = "eps"
    rollout: RolloutName = "backward_simulation"
