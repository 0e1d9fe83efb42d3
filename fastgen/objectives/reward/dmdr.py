"""DMDR: distribution matching and rewards at once (Jiang et al. 2025, arXiv:2511.13649).

DMD2's direction without a GAN, which keeps samples near the teacher's, and a reward of the same student. Its optimum is
p exp(r / beta) / Z of the teacher's density p where the directions are those of KL(q | p) (`weight: kl` at little
noise), beta being the reward's spread over `reward` times the values of a sample; other weights shift the balance along
the noise levels. The reward begins after a cold start: before, samples are too poor to be told apart by it. At first
the scores are compared at much noise, Beta(4, 1.5), at last evenly (dynamic renoise sampling). The teacher that begins
as the fake score and relaxes to itself (dynamic distribution guidance) is not here.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, final

from ...models.calls import look
from ...models.roles import Roles
from ...process import Beta
from ...unread import refuse_unread
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import Matching, compare
from ..parts.needs import Needs
from ..parts.ops import surrogate
from ..parts.rewarded import check_group, policy_loss, reward_loss
from ..parts.rollout import RolloutName
from ..parts.score_matching import ScoreMatching
from ..parts.weights import weighed

EARLY, SPAN = (4.0, 1.5), (0.02, 0.98)


@final
@dataclass(frozen=True)
class DMDR(ScoreMatching):
    """Distribution matching beside a reward.

    Args:
        reward: weight of the reward's term, which is in units of the reward's spread.
        form: refl differentiates rewards through the autoencoder; grpo compares samples of one prompt, needs no
            derivative, and trains all steps but the last.
        group: samples of one prompt, of grpo; a multiple of it is a micro-batch.
        start: images before the reward's term begins.
        renoise: images over which both scores' times move from much noise to even ones; 0 leaves `times` and
            `fake_times` as they are.
    """

    ratio: int = 5
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "backward_simulation"
    reward: float = 0.05
    form: Literal["refl", "grpo"] = "refl"
    group: int = 8
    start: int = 0
    renoise: int = 0

    def check(self) -> None:
        check_group(self.group)
        if self.form == "refl":
            refuse_unread(self, "group", why="form is refl", remedy="set form=grpo")
        if self.reward < 0 or self.start < 0 or self.renoise < 0:
            found = f"reward is {self.reward:g}, start {self.start} and renoise {self.renoise}"
            raise ValueError(f"{found}: need at least 0, a negative reward is a punishment")
        if not self.reward:
            refuse_unread(self, "form", "start", why="reward is 0", remedy="set a weight above 0")
        if self.renoise:
            why, remedy = f"renoise is {self.renoise}, which has times of its own", "set renoise=0"
            refuse_unread(self, "times", "fake_times", why=why, remedy=remedy)

    @property
    def also(self) -> Needs:
        own = Needs(rewards=True, judged_from=self.start if self.reward else 0)
        return own | Needs(sampler="renoise", steps=2, group=self.group) if self.form == "grpo" else own

    def at(self, images: int) -> Matching:
        if images >= self.renoise:
            return self
        early = (1 + math.cos(math.pi * images / self.renoise)) / 2
        a, b = (1 + early * (end - 1) for end in EARLY)
        return replace(self, times=Beta(a, b, *SPAN), fake_times=Beta(a, b), renoise=0)

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self.at(batch.images), roles, batch, landing)
        terms = {"dm": surrogate(landing.x0, weighed(self.weight, scores, landing.x0))}
        if self.reward and batch.images >= self.start:
            grpo = self.form == "grpo"
            loss = policy_loss(roles, batch, self.group) if grpo else reward_loss(roles, batch, landing.x0)
            terms["reward"] = self.reward * loss
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)
