"""DMD: distribution matching distillation (Yin et al. 2023, arXiv:2311.18828).

grad = (fake - real) / mean|x0 - real| (eq. 7 and 8, in the form of the published code, whose weight has one alpha
less than the text), plus a regression to the teacher's own samples of stored noises (eq. 9) that keeps the modes.
"""

from dataclasses import dataclass

from ..models.roles import Roles
from ..process import AnyTimeLaw, Uniform
from .base import Batch, Terms, Turn, check_ratio
from .guidance import AnyGuidance, Fixed
from .matching import compare, cycle_of, fake_denoising, reads
from .ops import RowName, look, pseudo_huber, surrogate
from .rollout import land, landed
from .weights import direction


@dataclass(frozen=True)
class DMD:
    """Distribution matching with regression; one step.

    Args:
        guidance: of the scores.
        regression: weight of the regression term.
        huber: c of its pseudo-Huber loss (the paper uses LPIPS).
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
    """

    guidance: AnyGuidance = Fixed(1.0)
    regression: float = 0.25
    huber: float = 0.03
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_space: RowName = "eps"
    ratio: int = 1

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio)

    @property
    def needs(self) -> frozenset[str]:
        return reads(guidance=self.guidance) | {"pairs", "one_step"}

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land("one_step", roles, batch)
        scores = compare(look, self, roles, batch, landing)
        t = batch.full(roles.grids[0][0])
        paired = roles.generator(roles.process.prior(batch.pair.eps, t), t, batch.cond).x0
        return {
            "dm": surrogate(landing.x0, direction("l1", scores, landing.x0)),
            "regression": self.regression * pseudo_huber(paired - batch.pair.x0, c=self.huber),
        }

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        landing = landed("one_step", roles, batch)
        return {"denoise": fake_denoising(self, roles, batch, landing)}
