"""GDD: diffusion models are innate one-step generators (Zheng and Yang 2024, arXiv:2405.20750).

No score of the teacher is read: the network that the teacher begins with learns from a discriminator alone, of one
call at pure noise. The discriminator reads a network that is foreign to the teacher, so that the student is held to
what images look like and not to the teacher's own way to them.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from ..parts.adversarial_distillation import AdversarialDistillation, CleanRollout
from ..parts.gan import GAN, AnyGAN
from ..parts.needs import Needs


@final
@dataclass(frozen=True)
class GDD(AdversarialDistillation):
    """A GAN that starts from the teacher; one step.

    In GDD-I most layers stay the teacher's: `train.roles.generator.frozen`, such as [conv, proj].

    Args:
        gan: the adversarial term, on decoded samples; the slope of the heads is held small, where the paper holds that
            of the whole discriminator.
    """

    gan: AnyGAN = GAN(weight=1.0, learned=1.0, pixels=True, feature_r1=1e-4)
    rollout: ClassVar[CleanRollout] = "one_step"

    @property
    def also(self) -> Needs:
        return Needs()

    def check(self) -> None:
        if not self.gan.pixels:
            raise ValueError("gan.pixels is false: GDD reads no denoiser but the one it trains, set it to true")
