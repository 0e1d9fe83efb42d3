"""Phased DMD: distribution matching phase by phase of the noise levels (Fan et al. 2025, arXiv:2510.27684).

A phase ends at x_s, s > 0 but for the last, and is matched at all t in (s, 1]. The authors' trainer has DMD's
normalised direction on the clean prediction of the phase's last call. The paper writes the exact gradient of
KL(q_t | p_t) by x_s,

    alpha_t alpha_{t|s} / (alpha_t sigma_t + sigma_t^2) (v_real - v_fake)
        = alpha_t alpha_{t|s} / sigma_t^2 (fake - real),

v = eps - x0 on every process: weight "kl", which falls ten thousandfold over the last phase where the normalised one
rises. The fake score learns p(x_t | x_s), since nothing but x_s is known of a sample.
"""

from dataclasses import dataclass
from functools import partial
from typing import final

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import check_floor, compare
from ..parts.needs import Needs
from ..parts.ops import RowName, surrogate
from ..parts.rollout import Rollout, phased
from ..parts.score_matching import ScoreMatching
from ..parts.weights import weighed


@final
@dataclass(frozen=True)
class PhasedDMD(ScoreMatching):
    """Distribution matching on sub-intervals; the student steps deterministically.

    Args:
        weight: weight of the direction; "l1" is the authors' trainer's, "kl" the paper's.
        times: where the two scores are compared, laid over the times above the phase's end.
        fake_times: where the fake score is trained, likewise.
        phases: that each grid of steps is split into.
        experts: the phases are those of a pipeline's two networks, each of which is trained in one. Otherwise every
            network plays in the phases that its times lie in, one network in all.
        floor: floor of the normaliser in "l1".
        even: the fake score's errors count the same at all times, as in the authors' trainer. Otherwise by the share
            of the noise in x_t that is known, which bounds the error of its target just above s.
        step_aware: the fake score is told the time of the generator's last call. Otherwise it sees the mixture of the
            phase's steps, and single steps may err in opposite ways.
    """

    fake_times: AnyTimeLaw = Uniform(0.02, 1.0)
    fake_space: RowName = "difference"
    ratio: int = 5
    guidance: AnyGuidance = Fixed(1.0)
    phases: int = 2
    experts: bool = False
    floor: float = 1e-4
    even: bool = True
    step_aware: bool = False

    def check(self) -> None:
        check_floor(self)
        if self.phases < 1:
            raise ValueError(f"phases is {self.phases}: need at least one")
        if self.experts and self.phases != 2:
            raise ValueError(f"phases is {self.phases}, but with experts there are theirs: set phases=2")

    @property
    def rollout(self) -> Rollout:
        return partial(phased, phases=self.phases, experts=self.experts)

    @property
    def also(self) -> Needs:
        known = {"called", "landed"} if self.step_aware else {"landed"}
        return Needs(scalars={"fake_score": known}, sampler="ode", steps=self.phases, experts=self.experts)

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self, roles, batch, landing, floor=self.floor)
        moved = landing.x if self.weight == "kl" else landing.x0
        matched = surrogate(moved, weighed(self.weight, scores, landing.x0))
        return {"dm": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised)
