"""DP-DMD: the first step keeps the variety, the others the quality (2026, arXiv:2602.03139).

The student's first step is regressed to where the teacher's own trajectory from the same noise leads,
`diversity` |v - v_teacher|^2 with the mean velocity of its first `anchor` of `grid` solver steps. What follows is
DMD2 without a GAN of the last sample, whose gradient runs through all steps but the first: matching, which would rather
drop modes, never reaches the step that chooses among them. Velocities are eps - x0 on every process.
"""

from dataclasses import dataclass
from itertools import islice, pairwise
from typing import final

from torch import Tensor

from ...models.calls import look, through
from ...models.roles import Roles
from ...models.walk import walk
from ...process import ROWS, Prediction
from ..parts.base import Batch, Landing, Terms
from ..parts.flow_map import cells, edges_of
from ..parts.gan import generator_terms
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.matching import compare
from ..parts.needs import Needs
from ..parts.ops import surrogate
from ..parts.rollout import Rollout
from ..parts.score_matching import ScoreMatching
from ..parts.solvers import landing_on
from ..parts.weights import weighed

VELOCITY = ROWS["difference"]


@dataclass(frozen=True)
class Run:
    """A student's whole sampling: its noise [B, ...], its first belief, both with gradient, and where it ended."""

    noise: Tensor
    first: Prediction
    landing: Landing


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
        if not 1 <= self.anchor <= self.grid:
            raise ValueError(f"anchor is {self.anchor} of {self.grid} steps of the grid: need 1 <= anchor <= grid")

    @property
    def rollout(self) -> Rollout:
        return lambda roles, batch: _sampled(roles, batch, edges_of(roles, batch)).landing

    @property
    def also(self) -> Needs:
        return Needs(sampler="ode", steps=2, anchored=True)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        edges = edges_of(roles, batch)
        run = _sampled(roles, batch, edges)
        batch.landing = run.landing.detach()
        scores = compare(look, self.at(batch.images), roles, batch, run.landing)
        gap = run.first.output(VELOCITY) - self._aim(roles, batch, run, edges).output(VELOCITY)
        terms = {
            "dm": surrogate(run.landing.x, weighed(self.weight, scores, run.landing.x0)),
            "diversity": self.diversity * gap.square().mean(),
        }
        return terms | generator_terms(self.gan, roles, batch, run.landing, scores.noised)

    def _aim(self, roles: Roles, batch: Batch, run: Run, edges: Tensor) -> Prediction:
        """What leads from the noise to the teacher's trajectory after `anchor` of its steps."""
        times, w = cells(edges, self.grid)[:-1].tolist(), self.guidance.drawn(batch.shared_rng).real
        stops = walk(roles.real_score, lambda: run.noise, batch.cond, times, sampler="ode", guidance=w)
        met = next(islice(stops, self.anchor, None))
        start = roles.process.prior(run.noise, run.first.t)
        return landing_on(roles.process, start, run.first.t, met.x_t, met.t)


def _sampled(roles: Roles, batch: Batch, edges: Tensor) -> Run:
    """From noise to the end by the student's deterministic steps; what follows the first gives it no gradient."""
    noise, t = batch.noise(), batch.full(edges[0])
    first = through(roles.generator, roles.process.prior(noise, t), t, batch.cond)
    belief, x = first, first.at(batch.full(edges[1])).detach()
    for here, following in pairwise(edges[1:].tolist()):
        t = batch.full(here)
        belief = through(roles.generator, x, t, batch.cond)
        x = belief.at(batch.full(following))
    return Run(noise, first, Landing(belief.x0, None, t, belief.x0))
