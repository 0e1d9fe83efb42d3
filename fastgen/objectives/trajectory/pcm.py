"""PCM: phased consistency models (Wang et al. 2024, arXiv:2405.18407).

The time axis is cut into phases at the student's own times, and within a phase every time is mapped to its end. The
last phase ends at step 0 of a discrete process.
"""

from dataclasses import dataclass

import torch

from ...models.roles import Roles
from ..parts.adversarial import above, check_adversarial, consistency_terms, discriminator_loss, turns
from ..parts.base import Batch, Terms, Turn
from ..parts.distances import DistanceName
from ..parts.flow_map import Interval, Jumps, cells, drawn_cell, edges_of, jumps, noised, segment_end
from ..parts.gan import GAN, AnyGAN, starts
from ..parts.needs import Needs
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName


@dataclass(frozen=True)
class PhasedConsistency:
    """PCM; the student steps deterministically.

    Args:
        guidance: of the teacher; the paper's 4 to 5 are 5 to 6 in Diffusers' convention. The student is not told.
        grid: solver steps from noise to data, rounded up to a whole number in each phase.
        solver: of one of them.
        distance: between the two jumps.
        huber: c of the Huber distances.
        gan: adversarial consistency, compared up to one phase above the end of the jump; 0 for none.
    """

    guidance: AnyScale = Guidance(5.0, 6.0)
    grid: int = 50
    solver: SolverName = "ddim"
    distance: DistanceName = "huber"
    huber: float = 1e-3
    gan: AnyGAN = GAN(weight=0.1, learned=1.0, kind="hinge")

    def __post_init__(self) -> None:
        check_adversarial(self)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return turns(self)

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True, sampler="ode")
        return own | starts(self.gan) | self.guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        edges = edges_of(roles, batch)
        ends = self._jumps(roles, batch, edges)
        return consistency_terms(self, roles, batch, ends, until=above(ends.s, 1 / (len(edges) - 1)))

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        edges = edges_of(roles, batch)
        with torch.no_grad():
            ends = self._jumps(roles, batch, edges)
        return discriminator_loss(self.gan, roles, batch, ends, until=above(ends.s, 1 / (len(edges) - 1)))

    def _jumps(self, roles: Roles, batch: Batch, edges: torch.Tensor) -> Jumps:
        t, r = drawn_cell(cells(edges, self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        interval, told = Interval(t, r, segment_end(edges, r, roles.process)), self.guidance.tell(batch, field)
        return jumps(roles, batch, interval, x_t, x_r, ema=0.0, scalars=told)
