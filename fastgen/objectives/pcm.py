"""PCM: phased consistency models (Wang et al. 2024, arXiv:2405.18407).

The time axis is cut into phases at the student's own times, and within a phase every time is mapped to its end. The
last phase ends at step 0 of a discrete process.
"""

from dataclasses import dataclass

import torch

from ..models.roles import Roles
from .adversarial import check_kind, taken_for_target, told_apart
from .base import Batch, Terms, Turn
from .distances import DISTANCES, DistanceName
from .flow_map import Interval, Jumps, cells, drawn_cell, edges_of, jumps, noised, segment_end
from .gan import GAN, AnyGAN
from .solvers import SOLVERS, AnyScale, Guidance, SolverName

RIVALS: tuple[Turn, ...] = (("discriminator",), ("generator",))


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
        check_kind(self.gan)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return RIVALS if self.gan.weight else RIVALS[1:]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"images", "real_score", "ode"}) | self.guidance.needs("generator")

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        edges = edges_of(roles, batch)
        ends = self._jumps(roles, batch, edges)
        terms = {"consistency": DISTANCES[self.distance](ends.gap, self.huber).mean()}
        if self.gan.weight:
            until = (ends.s + 1 / (len(edges) - 1)).clamp(max=1)
            terms["gan"] = self.gan.weight * taken_for_target(self.gan, roles, batch, ends, until=until)
        return terms

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        edges = edges_of(roles, batch)
        with torch.no_grad():
            ends = self._jumps(roles, batch, edges)
        until = (ends.s + 1 / (len(edges) - 1)).clamp(max=1)
        return told_apart(self.gan, roles, batch, ends, until=until)

    def _jumps(self, roles: Roles, batch: Batch, edges: torch.Tensor) -> Jumps:
        t, r = drawn_cell(cells(edges, self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        interval, told = Interval(t, r, segment_end(edges, r, roles.process)), self.guidance.tell(batch, field)
        return jumps(roles, batch, interval, x_t, x_r, ema=0.0, scalars=told)
