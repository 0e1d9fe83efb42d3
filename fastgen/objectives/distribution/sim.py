"""SIM: score implicit matching (Luo et al. 2024, arXiv:2410.16794).

For a distance d of y = real - fake the gradient of E d(y), with the fake score's own dependence on the generator, is
that of d'(y) (fake - x0) with both networks frozen and the graph through their inputs. The squared distance is SiD
with alpha = 1 and no weight; the pseudo-Huber distance normalises y and is what the paper trains with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Karras, LogNormal
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import AnyGuidance, Fixed
from ..parts.matching import compare, cycle_of, fake_terms, reads
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.rollout import RolloutName, land, landed
from ..parts.weights import WEIGHTS, WeightName

DistanceName = Literal["pseudo_huber", "square", "quartic"]

SLOPES: dict[DistanceName, Callable[[Tensor, float], Tensor]] = {
    "pseudo_huber": lambda square, c: (square + c**2).rsqrt(),
    "square": lambda square, c: square * 0 + 1,
    "quartic": lambda square, c: 2 * square,
}
"""d'(y) / y of d = sqrt(n + c^2) - c, n / 2 and n^2 / 2, where n [B, 1, ...] is the mean square of y."""


@dataclass(frozen=True)
class SIM:
    """Score implicit matching.

    Args:
        distance: of the two scores, in x0.
        huber: c of the pseudo-Huber distance, per element: 0.00054 sqrt(d) of a sum over d elements.
        weight: of the integrand and of the GAN term.
        guidance: of the scores.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared; "edm" has the paper's weight.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    distance: DistanceName = "pseudo_huber"
    huber: float = 5.4e-4
    weight: WeightName = "none"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    ratio: int = 1
    rollout: RolloutName = "one_step"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.huber <= 0:
            raise ValueError(
                f"huber is {self.huber:g}: the distance has no slope where the scores agree, need huber > 0"
            )

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        return reads(guidance=self.guidance, rollout=self.rollout, gan=self.gan)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land(self.rollout, roles, batch)
        scores = compare(through, self, roles, batch, landing)
        gap = scores.real.x0 - scores.fake.x0
        square = gap.square().mean(dim=tuple(range(1, gap.ndim)), keepdim=True)
        implicit = SLOPES[self.distance](square, self.huber) * gap * (scores.fake.x0 - scores.truth)
        weight = WEIGHTS[self.weight](scores, landing.x0)
        adversary = generator_terms(self.gan, roles, batch, landing, scores.noised, weight=weight)
        return {"sim": (weight * implicit).mean()} | adversary

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        return fake_terms(self, roles, batch, landed(self.rollout, roles, batch))
