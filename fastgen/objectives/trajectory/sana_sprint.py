"""SANA-Sprint: continuous-time consistency and adversarial distillation together (Chen et al. 2025, arXiv:2503.09641).

The flow teacher is read as a TrigFlow one without training (section 3.1; `scm` does so on every process). The adversary
sees the student's clean sample beside real ones, renoised (section 3.3), after a first call at the student's first
time for half of the rows (max-time weighting).
"""

from dataclasses import dataclass

import torch

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, LogNormal
from ...seeds import uniform
from ..parts.base import Batch, Cycle, Landing, Terms
from ..parts.derivative import check_step, needs_fine_times
from ..parts.gan import GAN, AnyGAN, check_apart, discriminator_losses, generator_terms, needs_gan
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance
from ..parts.velocity import Velocity, check_velocity, needs_velocity
from .scm import Norm, adaptive_mean, tangent_errors


@dataclass(frozen=True)
class SanaSprint:
    """sCM + LADD.

    Args:
        velocity, teacher_guidance, times, sigma_data, warmup, normaliser, norm, derivative_step: as in sCM; the
            teacher's guidance is told. The means of all time laws are the paper's plus log 2, since its latents are
            scaled to a deviation of 0.5.
        gan: the adversarial term.
        called: times of the student's calls that the adversary sees.
        first: share of rows whose calls are at the student's first time.
    """

    velocity: Velocity = "real_score"
    teacher_guidance: AnyScale = Guidance(4.0, 5.0, told=True)
    times: AnyTimeLaw = LogNormal(0.9, 1.6)
    sigma_data: float = 1.0
    warmup: int = 4_000_000
    normaliser: float = 0.1
    norm: Norm = "sample"
    derivative_step: float | None = None
    gan: AnyGAN = GAN(weight=0.5, learned=0.5, kind="hinge", times=LogNormal(0.1, 1.0), paired="times")
    called: AnyTimeLaw = LogNormal(0.9, 1.6)
    first: float = 0.5

    def __post_init__(self) -> None:
        check_velocity(self)
        check_step(self.derivative_step)
        check_apart(self.gan)
        if not self.gan.weight:
            raise ValueError("gan.weight is 0: without its adversary SANA-Sprint is sCM, choose objective scm")

    @property
    def cycle(self) -> Cycle:
        return (("generator", "log_variance"), ("discriminator",))

    @property
    def needs(self) -> Needs:
        own = Needs(log_variance=True) | needs_gan(self.gan)
        return needs_velocity(self) | needs_fine_times(self.derivative_step) | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = self._called(roles, batch)
        adversary = generator_terms(self.gan, roles, batch, landing)
        t, errors = tangent_errors(self, roles, batch)
        return {"tangent": adaptive_mean(roles, t, errors, sigma_data=self.sigma_data)} | adversary

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        with torch.no_grad():
            landing = self._called(roles, batch)
        return discriminator_losses(self.gan, roles, batch, landing.detach())

    def _called(self, roles: Roles, batch: Batch) -> Landing:
        """The student's clean samples of noised data."""
        t = self.called.sample(roles.process, batch.size, batch.rng)
        top = uniform(batch.rng, batch.size) < self.first
        t = torch.where(top, batch.full(roles.plan.grids[0][0]), t)
        guidance = self.teacher_guidance
        scalars = guidance.scalars(batch, guidance.field(roles, batch)) if guidance.told else {}
        x_t = roles.process.renoise(batch.x0, t, batch.noise())
        x0 = through(roles.generator, x_t, t, batch.cond, scalars).x0
        return Landing(x0, None, t, x0)
