"""Shortcutting a pretrained flow without a step embedding (SCFM, after the published training code).

The network is not told how far it jumps: it learns the jumps of the student's own grids only, so that a stock
pipeline runs it. The finest grid's jumps are the teacher's; those of coarser grids are at times the teacher's, and
otherwise two jumps of half the length, the first by the generator and the second by its slow average. (The code's
first half is a fast average of decay 0.99.)
"""

from dataclasses import dataclass

import torch

from ..models.roles import Roles
from ..process import ROWS, pad_like
from .base import Batch, Terms, Turn
from .consistency import ONE_TURN
from .flow_map import check_decay, drawn_step, edges_of, follow, needs_target, noised, target_of
from .ops import RowName, look, through
from .solvers import SOLVERS, AnyScale, Guidance, SolverName, landing_on


@dataclass(frozen=True)
class SelfShortcut:
    """SCFM; declare several step counts that double, such as [2, 4, 8, 16].

    Args:
        taught: share of rows whose jump is the teacher's.
        guidance: of the teacher.
        solver: of the teacher.
        substeps: of the teacher in a jump of the student's finest grid.
        ema: decay of the target.
        space: row in which errors are squared; "difference" is a flow's velocity.
    """

    taught: float = 0.4
    guidance: AnyScale = Guidance()
    solver: SolverName = "ddim"
    substeps: int = 2
    ema: float = 0.999
    space: RowName = "difference"

    def __post_init__(self) -> None:
        check_decay(self.ema)
        if not 0 < self.taught <= 1:
            raise ValueError(f"taught is {self.taught}: need a share of rows in (0, 1], the teacher has to come in")

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return ONE_TURN

    @property
    def needs(self) -> frozenset[str]:
        target = needs_target(self.ema)
        return frozenset({"images", "real_score", "ode"}) | target | self.guidance.needs("generator", *target)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        follow(roles, batch, self.ema)
        edges, finest = edges_of(roles, batch), max(len(grid) for grid in roles.grids)
        t, s = drawn_step(edges, batch)
        x_t, field = noised(roles, batch, t).x_t, self.guidance.field(roles, batch)
        told, steps = self.guidance.tell(batch, field), len(edges) - 1
        substeps = self.substeps * max(1, round(finest / steps))
        end = SOLVERS[self.solver](field, x_t, t, s, substeps=substeps)
        if steps < finest:
            r = (t + s) / 2
            x_r = look(roles.generator, x_t, t, batch.cond, told).at(r)
            own = look(target_of(roles, self.ema), x_r, r, batch.cond, told).at(s)
            taught = torch.rand(batch.size, generator=batch.rng, device=batch.rng.device) < self.taught
            end = torch.where(pad_like(taught, end), end, own)
        row = ROWS[self.space]
        aim = landing_on(roles.process, x_t, t, end, s).output(row)
        error = through(roles.generator, x_t, t, batch.cond, told).output(row) - aim
        return {"shortcut": error.square().mean()}
