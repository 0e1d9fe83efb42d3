"""VSD: variational score distillation (Wang et al. 2023, ProlificDreamer, arXiv:2305.16213, eq. 9; for images
SwiftBrush, Nguyen & Tran 2023, arXiv:2312.05239).

grad = sigma^2 (eps_real - eps_fake) = alpha sigma (fake - real) in x0, on a variance-preserving process; on others the
weight is that of the variance-preserving process with the same signal-to-noise ratio.
"""

from dataclasses import dataclass, field

from ..models.roles import Roles
from ..process import AnyTimeLaw, Uniform, pad_like
from .base import Batch, Terms, Turn, check_ratio
from .matching import compare, fake_denoising
from .ops import RowName, surrogate
from .rollout import RolloutName, land


@dataclass(frozen=True)
class VSD:
    """Variational score distillation.

    Args:
        guidance: of the real score; the fake score is never guided.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    guidance: float = 4.5
    times: AnyTimeLaw = field(default_factory=lambda: Uniform(0.02, 0.98))
    fake_times: AnyTimeLaw = field(default_factory=Uniform)
    fake_space: RowName = "eps"
    ratio: int = 1
    rollout: RolloutName = "backward_simulation"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return (("generator",), *self.ratio * (("fake_score",),))

    @property
    def needs(self) -> frozenset[str]:
        images = {"images"} if self.rollout == "noised_data" else set()
        return frozenset({"real_score"} | images | ({"null"} if self.guidance != 1 else set()))

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        x0 = land(self.rollout, roles, batch).x
        scores = compare(roles, batch, x0, law=self.times, guidance=self.guidance)
        alpha, sigma = roles.process.alpha(scores.t), roles.process.sigma(scores.t)
        weight = pad_like(alpha * sigma / (alpha**2 + sigma**2), x0).to(x0.dtype)
        return {"vsd": surrogate(x0, weight * (scores.fake.x0 - scores.real.x0))}

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        loss = fake_denoising(roles, batch, self.rollout, law=self.fake_times, space=self.fake_space)
        return {"denoise": loss}
