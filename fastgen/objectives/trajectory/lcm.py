"""Latent consistency models (Luo et al. 2023, arXiv:2310.04378) and LCM-LoRA (arXiv:2311.05556; `sharing: lora`).

Consistency distillation whose teacher skips about twenty trained steps at once and is guided. The paper's c_skip and
c_out are left out: at its smallest trained time, step 19, they are 7e-6 and 1. At step 0 they are 1 and 0, so that
there the target is the teacher's sample itself.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.roles import Roles
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.distances import DISTANCES, DistanceName, check_huber
from ..parts.flow_map import Interval, cells, check_decay, drawn_cell, edges_of, follow, jumps, noised
from ..parts.needs import Needs
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName


@dataclass(frozen=True)
class LatentConsistency:
    """LCM.

    Args:
        teacher_guidance: guidance of the teacher; the paper's 5 to 15 are 6 to 16 in Diffusers' convention.
        grid: solver steps from noise to data, rounded up to a whole number in each of the student's steps.
        solver: solver of these steps.
        ema: decay of the target; 0 for LoRA, where the generator is its own target.
        distance: between the two clean samples.
        huber: c of the Huber distances.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    teacher_guidance: AnyScale = Guidance(6.0, 16.0, told=True)
    grid: int = 50
    solver: SolverName = "ddim"
    ema: float = 0.95
    distance: DistanceName = "huber"
    huber: float = 1e-3

    def __post_init__(self) -> None:
        check_decay(self.ema)
        check_huber(self)

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=True) | self.teacher_guidance.needs(target=self.ema > 0)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t, r = drawn_cell(cells(edges_of(roles, batch), self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.teacher_guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        follow(roles, batch, self.ema)
        interval, scalars = Interval(t, r, batch.full(0.0)), self.teacher_guidance.scalars(batch, field)
        ends = jumps(roles, batch, interval, x_t, x_r, ema=self.ema, scalars=scalars)
        return {"consistency": DISTANCES[self.distance](ends.gap, self.huber).mean()}
