"""Phased DMD: distribution matching phase by phase of the noise levels (Fan et al. 2025, arXiv:2510.27684).

A phase ends at x_s, s > 0 but for the last, and is matched at all t in (s, 1] by the exact gradient of KL(q_t | p_t),

    alpha_t alpha_{t|s} / (alpha_t sigma_t + sigma_t^2) (v_real - v_fake)
        = alpha_t alpha_{t|s} / sigma_t^2 (fake - real),

v = eps - x0 on every process. The fake score learns p(x_t | x_s), since nothing but x_s is known of a sample.
"""

from dataclasses import dataclass

from ..models.roles import Roles
from ..process import AnyTimeLaw, Uniform
from .base import Batch, Terms, Turn, check_ratio
from .gan import GAN, AnyGAN, generator_terms
from .guidance import AnyGuidance, Fixed
from .matching import compare, cycle_of, fake_terms, reads
from .ops import RowName, look, surrogate
from .rollout import land, landed
from .weights import WeightName, direction


@dataclass(frozen=True)
class PhasedDMD:
    """Distribution matching on sub-intervals; the student steps deterministically.

    Args:
        phases: that each grid of steps is split into.
        experts: the phases are those of a pipeline's two networks, each of which is trained in one. Otherwise every
            network plays in the phases that its times lie in, one network in all.
        weight: of the direction; "kl" is the paper's.
        guidance: of the scores.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared, laid over the times above the phase's end.
        fake_times: where the fake score is trained, likewise.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        step_aware: the fake score is told the time of the generator's last call. Otherwise it sees the mixture of the
            phase's steps, and single steps may err in opposite ways.
    """

    phases: int = 2
    experts: bool = False
    weight: WeightName = "kl"
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 1.0)
    fake_space: RowName = "difference"
    ratio: int = 5
    step_aware: bool = False

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        if self.phases < 1:
            raise ValueError(f"phases is {self.phases}: need at least one")
        if self.experts and self.phases != 2:
            raise ValueError(f"phases is {self.phases}, but with experts there are theirs: set phases=2")

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> frozenset[str]:
        told = {"fake_score.landed"} | ({"fake_score.called"} if self.step_aware else set())
        own = {f"steps>={self.phases}"} | ({"experts"} if self.experts else set())
        return reads(guidance=self.guidance, rollout="phased", gan=self.gan) | told | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land("phased", roles, batch, phases=self.phases, experts=self.experts)
        scores = compare(look, self, roles, batch, landing)
        matched = surrogate(landing.x, direction(self.weight, scores, landing.x0))
        return {"dm": matched} | generator_terms(self.gan, roles, batch, landing)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        landing = landed("phased", roles, batch, phases=self.phases, experts=self.experts)
        return fake_terms(self, roles, batch, landing)
