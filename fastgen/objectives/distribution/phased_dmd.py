"""Phased DMD: distribution matching phase by phase of the noise levels (Fan et al. 2025, arXiv:2510.27684).

A phase ends at x_s, s > 0 but for the last, and is matched at all t in (s, 1]. The authors' trainer has DMD's
normalised direction on the clean prediction of the phase's last call. The paper writes the exact gradient of
KL(q_t | p_t) by x_s,

    alpha_t alpha_{t|s} / (alpha_t sigma_t + sigma_t^2) (v_real - v_fake)
        = alpha_t alpha_{t|s} / sigma_t^2 (fake - real),

v = eps - x0 on every process: weight "kl", which falls ten thousandfold over the last phase where the normalised one
rises. The fake score learns p(x_t | x_s), since nothing but x_s is known of a sample.
"""

from dataclasses import dataclass, replace

import torch

from ...models.calls import look
from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ..parts.base import Batch, Terms, Turn, check_ratio
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance import AnyGuidance, Fixed
from ..parts.matching import check_floor, compare, cycle_of, reads, taught, terms_of
from ..parts.needs import Needs
from ..parts.ops import RowName, surrogate
from ..parts.rollout import land, landed
from ..parts.weights import WeightName, direction


@dataclass(frozen=True)
class PhasedDMD:
    """Distribution matching on sub-intervals; the student steps deterministically.

    Args:
        phases: that each grid of steps is split into.
        experts: the phases are those of a pipeline's two networks, each of which is trained in one. Otherwise every
            network plays in the phases that its times lie in, one network in all.
        weight: of the direction; "l1" is the authors' trainer's, "kl" the paper's.
        floor: of the normaliser in "l1".
        guidance: of the scores.
        gan: an adversarial term; 0 trains without discriminator and without images.
        times: where the two scores are compared, laid over the times above the phase's end.
        fake_times: where the fake score is trained, likewise.
        fake_space: row in which the fake score's errors are squared.
        even: its errors count the same at all times, as in the authors' trainer. Otherwise by the share of the noise in
            x_t that is known, which bounds the error of its target just above s.
        ratio: fake updates per generator update.
        step_aware: the fake score is told the time of the generator's last call. Otherwise it sees the mixture of the
            phase's steps, and single steps may err in opposite ways.
    """

    phases: int = 2
    experts: bool = False
    weight: WeightName = "l1"
    floor: float = 1e-4
    guidance: AnyGuidance = Fixed(1.0)
    gan: AnyGAN = GAN(0.0)
    times: AnyTimeLaw = Uniform(0.02, 0.98)
    fake_times: AnyTimeLaw = Uniform(0.02, 1.0)
    fake_space: RowName = "difference"
    even: bool = True
    ratio: int = 5
    step_aware: bool = False

    def __post_init__(self) -> None:
        check_ratio(self.ratio)
        check_floor(self.floor)
        if self.phases < 1:
            raise ValueError(f"phases is {self.phases}: need at least one")
        if self.experts and self.phases != 2:
            raise ValueError(f"phases is {self.phases}, but with experts there are theirs: set phases=2")

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return cycle_of(self.ratio, self.gan)

    @property
    def needs(self) -> Needs:
        told = {"called", "landed"} if self.step_aware else {"landed"}
        own = Needs(scalars={"fake_score": told}, steps=self.phases, experts=self.experts)
        return reads(guidance=self.guidance, rollout="phased", gan=self.gan) | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        landing = land("phased", roles, batch, phases=self.phases, experts=self.experts)
        scores = compare(look, self, roles, batch, landing, floor=self.floor)
        matched = surrogate(
            landing.x if self.weight == "kl" else landing.x0, direction(self.weight, scores, landing.x0)
        )
        return {"dm": matched} | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        landing = landed("phased", roles, batch, phases=self.phases, experts=self.experts)
        noised = taught(self, roles, batch, landing)
        if self.even:
            noised = replace(noised, precision=torch.ones_like(noised.precision))
        return terms_of(self, roles, batch, landing, noised)
