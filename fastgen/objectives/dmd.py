"""DMD: distribution matching distillation (Yin et al. 2023, arXiv:2311.18828).

grad = (fake - real) / mean|x0 - real| (eq. 7 and 8, in the form of the published code, whose weight has one alpha
less than the text), plus a regression to the teacher's own samples of stored noises (eq. 9) that keeps the modes.
"""

from dataclasses import dataclass, field

from ..models.roles import Roles
from ..process import AnyTimeLaw, Uniform
from .base import Batch, Terms, Turn, check_ratio
from .matching import compare, fake_denoising, matching_gradient
from .ops import RowName, pseudo_huber, surrogate
from .rollout import land


@dataclass(frozen=True)
class DMD:
    """Distribution matching with regression; one step.

    Args:
        guidance: of the real score.
        regression: weight of the regression term.
        huber: c of its pseudo-Huber loss (the paper uses LPIPS).
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
    """

    guidance: float = 1.0
    regression: float = 0.25
    huber: float = 0.03
    times: AnyTimeLaw = field(default_factory=lambda: Uniform(0.02, 0.98))
    fake_times: AnyTimeLaw = field(default_factory=lambda: Uniform(0.02, 0.98))
    fake_space: RowName = "eps"
    ratio: int = 1

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return (("generator",), *self.ratio * (("fake_score",),))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"real_score", "pairs", "one_step"} | ({"null"} if self.guidance != 1 else set()))

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        x0 = land("one_step", roles, batch).x
        scores = compare(roles, batch, x0, law=self.times, guidance=self.guidance)
        t = batch.full(roles.grids[0][0])
        paired = roles.generator(roles.process.prior(batch.pair.eps, t), t, batch.cond).x0
        return {
            "dm": surrogate(x0, matching_gradient(x0, scores)),
            "regression": self.regression * pseudo_huber(paired - batch.pair.x0, c=self.huber),
        }

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        loss = fake_denoising(roles, batch, "one_step", law=self.fake_times, space=self.fake_space)
        return {"denoise": loss}
