"""ASD: adversarial self-distillation (Yang et al. 2025, arXiv:2511.01419), beside distribution matching.

A student of few steps is far from its teacher, but near to itself with one step more. So samples of n steps learn to
pass for samples of n + 1, before a relativistic discriminator on the fake score's features, while distribution matching
draws all of them to the teacher. One student then serves several numbers of steps, and needs no images. A sample has n
steps when the generator was called n times for it. It is compared with whole samples of the next larger number of steps
that is declared, which is n + 1 where all are; samples of the largest number are drawn to the teacher alone.

The paper distils causal video, frame by frame, with more steps for the first frames; its loss does not ask for that.
Its code was not public. Neither the weight of the term was found, nor whether n and n + 1 steps stop at the same times:
here each number of steps stops where the exported scheduler does.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ...models.calls import look
from ...models.roles import Roles
from ..parts.base import Batch, Landing, Terms
from ..parts.gan import GAN, AnyGAN, generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare
from ..parts.needs import Needs
from ..parts.ops import surrogate
from ..parts.originals import Originals, TimedSamples
from ..parts.rollout import RolloutName, sampled
from ..parts.score_matching import ScoreMatching
from ..parts.weights import weighed

SELF = GAN(kind="relativistic", approximate_r1=600.0, approximate_r2=600.0, spread=0.05)
"""The paper's kind and slopes, under DMD2's weights."""


@final
@dataclass(frozen=True)
class AdversarialSelfDistillation(ScoreMatching):
    """Distribution matching, and an adversary that tells the student's few steps from its more.

    Args:
        gan: the adversarial term; its real samples are the student's own of more steps.
    """

    gan: AnyGAN = SELF
    ratio: int = 5
    guidance: AnyGuidance = Fixed(3.0)
    rollout: RolloutName = "backward_simulation"

    def check(self) -> None:
        if not self.gan.weight:
            raise ValueError("gan.weight is 0: without its adversary this is dmd2 with gan=0, choose that")
        if self.rollout == "one_step":
            raise ValueError("rollout is one_step: few steps are held against more, set it to backward_simulation")

    @property
    def also(self) -> Needs:
        return Needs(longest=2)

    @property
    def originals(self) -> Originals:
        return Originals(of_more_steps, Needs())

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self.at(batch.images), roles, batch, landing)
        terms = {"dm": surrogate(landing.x0, weighed(self.weight, scores, landing.x0))}
        if landing.calls >= len(longer(roles, landing.calls)):
            return terms | {"gan": torch.zeros_like(terms["dm"])}
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised, originals=self.originals)


def of_more_steps(roles: Roles, batch: Batch, landing: Landing) -> TimedSamples:
    """The student's own samples in the next larger number of steps."""
    grid = longer(roles, landing.calls)
    x, _ = sampled(roles, batch, grid, depth=len(grid))
    return TimedSamples(x)


def longer(roles: Roles, calls: int) -> Tensor:
    """The shortest grid of more stops than that; the longest where none has more."""
    grids = sorted(roles.plan.grids, key=len)
    return next((grid for grid in grids if len(grid) > calls), grids[-1])
