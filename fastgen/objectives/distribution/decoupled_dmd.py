"""Decoupled DMD: guidance augmentation and distribution matching apart (Liu et al. 2025, arXiv:2511.22677).

DMD's guided direction fake - real_w is the sum of fake - real^c, which matches distributions, and (w - 1)
(real^u - real^c), which turns the teacher's guidance into the student's. Each gets renoise levels and a normaliser of
its own; the second works best below the noise level of the student's step. It has no fixed point of its own.
"""

from dataclasses import dataclass

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Uniform
from ..parts.base import Batch, Landing, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import Fixed
from ..parts.matching import Scores, check_floor, compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName, renoised, surrogate
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class DecoupledDMD:
    """Distribution matching with a separate augmentation by guidance.

    Args:
        augmentation: w, the guidance scale; 1 leaves the augmentation out.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the scores are compared.
        augmentation_times: where the guidance is read, laid over the times below the student's step.
        below_step: whether they are; otherwise they run over all times.
        weight: of both directions.
        floor: of the normaliser in "l1", for both; the published code's, which keeps the looks below the last step from
            outweighing all others.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    augmentation: float = 7.0
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    augmentation_times: AnyTimeLaw = Uniform(0.02, 1.0)
    below_step: bool = True
    weight: WeightName = "l1"
    floor: float = 0.1
    fake_times: AnyTimeLaw = Uniform()
    fake_space: RowName = "eps"
    ratio: int = 5
    rollout: RolloutName = "backward_simulation"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_floor(self.floor)

    @property
    def guidance(self) -> Fixed:
        """Of the scores that are matched: none."""
        return Fixed(1.0)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        return reads(guidance=Fixed(self.augmentation), rollout=self.rollout, gan=self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land(self.rollout, roles, batch)
        scores = compare(look, self, roles, batch, landing, floor=self.floor)
        terms = {"dm": surrogate(landing.x0, direction(self.weight, scores, landing.x0))}
        if self.augmentation != 1:
            terms["augmentation"] = surrogate(landing.x0, self._augmentation(roles, batch, landing))
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))

    def _augmentation(self, roles: Roles, batch: Batch, landing: Landing) -> Latent:
        """(w - 1) (real^u - real^c): the direction of a fake score that is the unconditional real one."""
        until = landing.t if self.below_step else None
        noised = renoised(roles, batch, landing.x, law=self.augmentation_times, s=landing.s, until=until)
        real = look(roles.real_score, noised.x_t, noised.t, batch.cond)
        null = look(roles.real_score, noised.x_t, noised.t, batch.cond.unconditional)
        scores = Scores(noised, real, null, self.floor)
        return (self.augmentation - 1) * direction(self.weight, scores, landing.x0)
