"""APT: adversarial post-training (Lin et al. 2025, arXiv:2501.08316), of a student that takes one step already.

The discriminator is a copy of the teacher's whole network that learns with its heads (section 3.3), and what keeps it
from winning is its slope at real samples, by a difference in place of a second derivative (section 3.4). It looks at
renoised samples, as all of this family do; how the paper mixes its times was not to be had in full.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from ..parts.adversarial_distillation import AdversarialDistillation, CleanRollout
from ..parts.gan import GAN, AnyGAN
from ..parts.needs import Needs


@final
@dataclass(frozen=True)
class APT(AdversarialDistillation):
    """A GAN against real samples; one step.

    It reads no role but the generator, so that its discriminator has a backbone of its own unless `gan.pixels`.

    Args:
        gan: the adversarial term; the paper's spread is 0.01 for images and 0.1 for videos.
    """

    gan: AnyGAN = GAN(weight=1.0, learned=1.0, approximate_r1=100.0, spread=0.01)
    rollout: ClassVar[CleanRollout] = "one_step"

    @property
    def also(self) -> Needs:
        return Needs()
