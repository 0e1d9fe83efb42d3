"""SIM: score implicit matching (Luo et al. 2024, arXiv:2410.16794).

For a distance d of y = real - fake the gradient of E d(y), with the fake score's own dependence on the generator, is
that of d'(y) (fake - x0) with both networks frozen and the graph through their inputs. The squared distance is SiD
with alpha = 1 and no weight; the pseudo-Huber distance normalises y and is what the paper trains with.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Karras, LogNormal
from ..parts.base import Batch, Landing, Terms
from ..parts.distances import check_huber
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare
from ..parts.ops import RowName
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import WEIGHTS, WeightName

ScoreDistance = Literal["pseudo_huber", "square", "quartic"]

SLOPES: dict[ScoreDistance, Callable[[Tensor, float], Tensor]] = {
    "pseudo_huber": lambda square, c: (square + c**2).rsqrt(),
    "square": lambda square, c: square * 0 + 1,
    "quartic": lambda square, c: 2 * square,
}
"""d'(y) / y of d = sqrt(n + c^2) - c, n / 2 and n^2 / 2, where n [B, 1, ...] is the mean square of y."""


@final
@dataclass(frozen=True)
class SIM(ScoreMatching):
    """Score implicit matching.

    Args:
        weight: weight of the integrand and of the GAN term.
        distance: distance of the two scores, in x0.
        huber: c of the pseudo-Huber distance, per element: 0.00054 sqrt(d) of a sum over d elements.
    """

    weight: WeightName = "none"
    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "one_step"
    distance: ScoreDistance = "pseudo_huber"
    huber: float = 5.4e-4

    @property
    def weighs_gan(self) -> bool:
        return True

    def check(self) -> None:
        check_huber(self)
        if self.huber <= 0:
            raise ValueError(
                f"huber is {self.huber:g}: the distance has no slope where the scores agree, need huber > 0"
            )

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(through, self, roles, batch, landing)
        gap = scores.real.x0 - scores.fake.x0
        square = gap.square().mean(dim=tuple(range(1, gap.ndim)), keepdim=True)
        implicit = SLOPES[self.distance](square, self.huber) * gap * (scores.fake.x0 - scores.truth)
        weight = WEIGHTS[self.weight](scores, landing.x0)
        adversary = generator_terms(self.gan, roles, batch, landing, scores.noised, weight=weight)
        return {"sim": (weight * implicit).mean()} | adversary
