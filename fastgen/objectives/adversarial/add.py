"""ADD: adversarial diffusion distillation (Sauer et al. 2023, arXiv:2311.17042), of SDXL-Turbo.

The student starts from noised real samples and is judged decoded, by heads on a vision model's features (section 3.2),
beside a distance to what the frozen teacher makes of its renoised samples (section 3.3). The distance is measured in
the denoiser's space, where the paper decodes both.
"""

from dataclasses import dataclass
from typing import final

from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform, pad_like
from ...unread import refuse_unread
from ..parts.adversarial_distillation import AdversarialDistillation, CleanRollout
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import GAN, AnyGAN
from ..parts.needs import Needs
from ..parts.ops import renoised
from ..parts.solvers import AnyScale, Guidance


@final
@dataclass(frozen=True)
class ADD(AdversarialDistillation):
    """An adversary on decoded samples, and the teacher's denoising of them.

    Args:
        gan: the adversarial term; the slope of its heads is held small as in the paper, whose losses are summed over
            the heads, where here is their mean.
        distillation: weight lambda of the squared distance to the teacher's denoised samples.
        times: where the teacher denoises them; the weight c(t) there is the paper's "exponential" one, the alpha of a
            process that keeps the variance.
        teacher_guidance: guidance of the teacher.
    """

    gan: AnyGAN = GAN(weight=1.0, learned=1.0, kind="hinge", pixels=True, feature_r1=2e-5)
    rollout: CleanRollout = "noised_data"
    distillation: float = 2.5
    times: AnyTimeLaw = Uniform()
    teacher_guidance: AnyScale = Guidance()

    @property
    def also(self) -> Needs:
        return Needs(real_score=True) | self.teacher_guidance.needs()

    def check(self) -> None:
        if self.distillation < 0:
            raise ValueError(
                f"distillation is {self.distillation:g}: a negative weight drives the student off, need >= 0"
            )
        if not self.distillation:
            refuse_unread(self, "times", "teacher_guidance", why="distillation is 0", remedy="set a weight above 0")
        if self.teacher_guidance.told:
            raise ValueError("teacher_guidance.told is true, which a student judged by images is not: set it to false")

    def beside(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        """lambda c(t) |x0 - D(x_t, t)|^2, with x_t made of x0 without gradient (eq. 4)."""
        if not self.distillation:
            return {}
        noised = renoised(roles, batch, landing.x0.detach(), law=self.times)
        aim = self.teacher_guidance.field(roles, batch)(noised.x_t, noised.t).x0
        error = landing.x0 - aim
        weight = roles.process.logsnr(noised.t).sigmoid().sqrt()
        return {"distillation": self.distillation * (pad_like(weight, error).to(error.dtype) * error.square()).mean()}
