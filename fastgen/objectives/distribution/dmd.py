"""DMD: distribution matching distillation (Yin et al. 2023, arXiv:2311.18828).

grad = (fake - real) / mean|x0 - real| (eq. 7 and 8, in the form of the published code, whose weight has one alpha
less than the text), plus a regression to the teacher's own samples of stored noises (eq. 9) that keeps the modes.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Uniform
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import AnyGuidance, Fixed
from ..parts.matching import compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName, pseudo_huber, surrogate
from ..parts.rollout import land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class DMD:
    """Distribution matching with regression; one step.

    Args:
        weight: of the direction.
        guidance: of the scores.
        gan: an adversarial term; 0 trains without discriminator and without images.
        regression: weight of the regression term.
        distance: of the regression: pseudo-Huber in the denoiser's space, or LPIPS of the images as in the paper.
        huber: c of the pseudo-Huber loss.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
    """

    weight: WeightName = "l1"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN(0.0)
    regression: float = 0.25
    distance: Literal["pseudo_huber", "lpips"] = "pseudo_huber"
    huber: float = 0.03
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_space: RowName = "eps"
    ratio: int = 1

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.regression < 0:
            raise ValueError(
                f"regression is {self.regression:g}: a negative weight trains away from the teacher's pairs"
            )

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        own = Needs(pairs=True, one_step=True, lpips=self.distance == "lpips")
        return reads(guidance=self.guidance, gan=self.gan) | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land("one_step", roles, batch)
        scores = compare(look, self, roles, batch, landing)
        t = batch.full(roles.student.grids[0][0])
        paired = roles.generator(roles.process.prior(batch.pair.eps, t), t, batch.cond).x0
        terms = {
            "dm": surrogate(landing.x0, direction(self.weight, scores, landing.x0)),
            "regression": self.regression * self._distance(roles, paired, batch.pair.x0),
        }
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed("one_step", roles, batch))

    def _distance(self, roles: Roles, x: Latent, y: Latent) -> Tensor:
        if self.distance == "lpips":
            return roles["lpips"](x, y).mean()  # type: ignore[no-any-return]
        return pseudo_huber(x - y, c=self.huber)
