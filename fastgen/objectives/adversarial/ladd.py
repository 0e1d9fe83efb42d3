"""LADD: latent adversarial diffusion distillation (Sauer et al. 2024, arXiv:2403.12015).

The discriminator is heads on the frozen teacher's features of renoised latents (section 3): nothing is decoded, the
noise level says whether structure or texture is judged, and no distillation loss is needed. Its real samples are the
teacher's own, guided, so that prompts suffice (section 3.2); the student starts from them, noised to one of its times.
"""

from dataclasses import dataclass
from typing import final

from ...process import LogitNormal
from ..parts.adversarial_distillation import AdversarialDistillation, CleanRollout, Real
from ..parts.gan import GAN, AnyGAN
from ..parts.needs import Needs


@final
@dataclass(frozen=True)
class LADD(AdversarialDistillation):
    """An adversary on the teacher's features alone.

    Heads on every block as in the paper are `discriminator.layers: blocks`. The student's times are drawn evenly, where
    the paper leans them by its phase of training.
    """

    gan: AnyGAN = GAN(weight=1.0, learned=1.0, kind="hinge", times=LogitNormal(1.0, 1.0))
    real: Real = "teacher"
    rollout: CleanRollout = "noised_data"

    @property
    def also(self) -> Needs:
        return Needs(real_score=True)
