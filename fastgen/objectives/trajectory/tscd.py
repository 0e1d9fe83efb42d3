"""TSCD: trajectory segmented consistency distillation of Hyper-SD (Ren et al. 2024, arXiv:2404.13686, section 3.1).

One stage per number of segments, 8, 4, 2 and 1, each going on from the generator of the one before: every time is
mapped to the lower end of its segment, for a student that steps deterministically. With one segment that is a
consistency model. The paper goes on with human
feedback and score distillation (a DMD2 stage here).
"""

from dataclasses import dataclass

import torch

from ...models.roles import Roles
from ...models.walk import Sampler
from ..parts.adversarial import above, check_adversarial, consistency_terms, discriminator_loss, turns
from ..parts.base import Batch, Terms, Turn
from ..parts.distances import DistanceName
from ..parts.flow_map import (
    Interval,
    Jumps,
    cells,
    check_decay,
    divided,
    drawn_cell,
    edges_of,
    follow,
    jumps,
    noised,
    segment_end,
)
from ..parts.gan import GAN, AnyGAN, starts
from ..parts.needs import Needs
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName


@dataclass(frozen=True)
class SegmentedConsistency:
    """TSCD with a fixed number of segments.

    Args:
        segments: into which the student's steps are divided or merged.
        guidance: of the teacher (the paper's scale is not known to us).
        grid: solver steps from noise to data, rounded up to a whole number in each segment.
        solver: of one of them.
        ema: decay of the target; 0 makes the generator its own target.
        distance: between the two jumps; the paper's is the mean square, and an adversarial one for few segments.
        huber: c of the Huber distances.
        gan: adversarial term, compared up to one segment above the end of the jump.
    """

    segments: int = 8
    guidance: AnyScale = Guidance(7.5, 7.5)
    grid: int = 50
    solver: SolverName = "ddim"
    ema: float = 0.95
    distance: DistanceName = "l2"
    huber: float = 1e-3
    gan: AnyGAN = GAN(weight=0.0, learned=1.0, kind="hinge")

    def __post_init__(self) -> None:
        check_decay(self.ema)
        check_adversarial(self)
        if self.segments < 1:
            raise ValueError(f"segments is {self.segments}: need at least one, the paper's stages have 8, 4, 2 and 1")

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return turns(self)

    @property
    def needs(self) -> Needs:
        sampler: Sampler | None = "ode" if self.segments > 1 else None
        own = Needs(images=True, real_score=True, sampler=sampler) | starts(self.gan)
        return own | self.guidance.needs(target=self.ema > 0)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        follow(roles, batch, self.ema)
        ends = self._jumps(roles, batch)
        return consistency_terms(self, roles, batch, ends, until=above(ends.s, 1 / self.segments))

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        with torch.no_grad():
            ends = self._jumps(roles, batch)
        return discriminator_loss(self.gan, roles, batch, ends, until=above(ends.s, 1 / self.segments))

    def _jumps(self, roles: Roles, batch: Batch) -> Jumps:
        edges = divided(edges_of(roles, batch), self.segments)
        t, r = drawn_cell(cells(edges, self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        interval, told = Interval(t, r, segment_end(edges, r, roles.process)), self.guidance.tell(batch, field)
        return jumps(roles, batch, interval, x_t, x_r, ema=self.ema, scalars=told)
