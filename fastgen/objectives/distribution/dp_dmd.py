"""DP-DMD: the first step keeps the variety, the others the quality (2026, arXiv:2602.03139).

The student's first step is regressed to where the teacher's own trajectory from the same noise leads,
`diversity` |v - v_teacher|^2 with the mean velocity of its first `anchor` of `grid` solver steps. What follows is
DMD2 without a GAN of the last sample, whose gradient runs through all steps but the first: matching, which would rather
drop modes, never reaches the step that chooses among them. Velocities are eps - x0 on every process.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import final

from torch import Tensor

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import Prediction
from ..parts.anchors import VELOCITY, anchored_start, check_anchor
from ..parts.base import Batch, Landing, Terms
from ..parts.flow_map import edges_of
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare
from ..parts.needs import Needs
from ..parts.ops import surrogate
from ..parts.rollout import Rollout
from ..parts.score_matching import ScoreMatching
from ..parts.solvers import Field
from ..parts.weights import weighed


@dataclass(frozen=True)
class Run(Landing):
    """A student's whole sampling: where it ended, and how it began.

    Args:
        edges: of its steps, [n + 1] descending times.
        noise: the unit noise [B, ...] that it started from.
        first: the belief of its first call, with gradient.
    """

    edges: Tensor
    noise: Tensor
    first: Prediction


@final
@dataclass(frozen=True)
class DPDMD(ScoreMatching):
    """Distribution matching of the last sample, and a first step that is the teacher's; deterministic steps.

    Args:
        diversity: weight of the first step's regression.
        anchor: solver steps of the teacher before it is met; more keep more variety, and more of its errors.
        grid: solver steps of the teacher from noise to data, rounded up to a whole number in each of the student's.
    """

    ratio: int = 5
    guidance: AnyGuidance = Fixed(3.5)
    diversity: float = 0.05
    anchor: int = 5
    grid: int = 30

    def check(self) -> None:
        if self.diversity <= 0:
            raise ValueError(f"diversity is {self.diversity:g}: nothing else trains the first step, need above 0")
        check_anchor(self.anchor, self.grid)
        if self.stabilisers.skip or self.stabilisers.diversity.weight:
            raise ValueError(
                "stabilisers.skip and stabilisers.diversity are what dp_dmd does by itself: leave them out, its own "
                "settings are diversity, anchor and grid"
            )

    @property
    def rollout(self) -> Rollout:
        return _sampled

    @property
    def also(self) -> Needs:
        return Needs(sampler="ode", steps=2, anchored=True)

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        assert isinstance(landing, Run), "the rollout's"
        scores = compare(look, self.at(batch.images), roles, batch, landing)
        gap = landing.first.output(VELOCITY) - self._aim(roles, batch, landing).output(VELOCITY)
        terms = {
            "dm": surrogate(landing.x, weighed(self.weight, scores, landing.x0)),
            "diversity": self.diversity * gap.square().mean(),
        }
        return terms | generator_terms(self.gan, roles, batch, landing, scores.noised)

    def _aim(self, roles: Roles, batch: Batch, run: Run) -> Prediction:
        """What leads from the noise to the teacher's trajectory after `anchor` of its steps."""
        field = Field(roles.real_score, batch.cond, self.guidance.drawn(batch.shared_rng).real)
        return anchored_start(field, batch, run.noise, run.edges, anchor=self.anchor, grid=self.grid)


def _sampled(roles: Roles, batch: Batch) -> Run:
    """Samples by the student's deterministic steps from noise; no gradient goes back from later steps to the first."""
    edges, noise = edges_of(roles, batch), batch.noise()
    t = batch.full(edges[0])
    first = through(roles.generator, roles.process.prior(noise, t), t, batch.cond)
    belief, x = first, first.at(batch.full(edges[1])).detach()
    for here, following in pairwise(edges[1:].tolist()):
        t = batch.full(here)
        belief = through(roles.generator, x, t, batch.cond)
        x = belief.at(batch.full(following))
    return Run(belief.x0, None, t, belief.x0, edges, noise, first)
