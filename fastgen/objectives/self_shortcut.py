"""Shortcutting a pretrained flow without a step embedding (SCFM, after the published training code).

The network is not told how far it jumps: it learns the jumps of the student's own grids only, so that a stock
pipeline runs it. A jump ends where two of half its length do, and the second of these is the generator's slow
average's. The first is the teacher's on the finest grid, and the generator's on coarser ones, where the published code
has a fast average of decay 0.99. (The code moves its grids by a drawn shift, so that times between the stops of the
finest are trained too.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..models.roles import Roles
from ..process import ROWS, Time, pad_like
from .base import Batch, Terms, Turn
from .consistency import ONE_TURN
from .flow_map import Interval, check_decay, follow, needs_target, noised, stops_of, target_of
from .ops import RowName, look, through
from .solvers import SOLVERS, AnyScale, Guidance, SolverName, landing_on


@dataclass(frozen=True)
class SelfShortcut:
    """SCFM; declare several step counts that double, such as [2, 4, 8, 16].

    Args:
        taught: share of rows on the finest grid, where the teacher begins; all of them if there is no coarser one.
        guidance: of the teacher.
        solver: of the teacher.
        substeps: of the teacher in its half of a jump.
        ema: decay of the target.
        space: row in which errors are squared; "difference" is a flow's velocity.
    """

    taught: float = 0.4
    guidance: AnyScale = Guidance()
    solver: SolverName = "ddim"
    substeps: int = 1
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
        taught, jump = self._jump(roles, batch)
        x_t, field = noised(roles, batch, jump.t).x_t, self.guidance.field(roles, batch)
        told, row = self.guidance.tell(batch, field), ROWS[self.space]
        x_r = look(roles.generator, x_t, jump.t, batch.cond, told).at(jump.r)
        if taught.any():
            by_teacher = SOLVERS[self.solver](field, x_t, jump.t, jump.r, substeps=self.substeps)
            x_r = torch.where(pad_like(taught, x_r), by_teacher, x_r)
        end = look(target_of(roles, self.ema), x_r, jump.r, batch.cond, told).at(jump.s)
        aim = landing_on(roles.process, x_t, jump.t, end, jump.s).output(row)
        error = through(roles.generator, x_t, jump.t, batch.cond, told).output(row) - aim
        return {"shortcut": error.square().mean()}

    def _jump(self, roles: Roles, batch: Batch) -> tuple[Tensor, Interval]:
        """Which rows [B] are taught, and beginning, middle and end of each row's jump."""
        finest = max(roles.grids, key=len)
        coarser = [grid for grid in roles.grids if len(grid) < len(finest)]
        u = torch.rand(batch.size, generator=batch.rng, device=batch.rng.device)
        taught = u < (self.taught if coarser else 1.0)
        (t, s), (long_t, long_s) = drawn_jump([finest], batch), drawn_jump(coarser or [finest], batch)
        t, s = torch.where(taught, t, long_t), torch.where(taught, s, long_s)
        return taught, Interval(t, halfway(stops_of(roles, batch), t, s), s)


def drawn_jump(grids: Sequence[Tensor], batch: Batch) -> tuple[Time, Time]:
    """Both ends t > s [B] of a step of one of the grids, all of them equally often."""
    device = batch.rng.device
    edges = pad_sequence([grid.double().to(device) for grid in grids], batch_first=True)
    edges = torch.cat([edges, edges.new_zeros(len(grids), 1)], dim=1)
    which = torch.randint(len(grids), (batch.size,), generator=batch.rng, device=device)
    steps = torch.tensor([len(grid) for grid in grids], device=device)[which]
    u = torch.rand(batch.size, generator=batch.rng, device=device, dtype=torch.float64)
    i = (u * steps).long()
    return edges[which, i], edges[which, i + 1]


def halfway(stops: Tensor, t: Time, s: Time) -> Time:
    """The middle one of the ascending stops from s to t [B], or the mean of the two in the middle."""
    i, j = ((stops - end[:, None]).abs().argmin(dim=1) for end in (s, t))
    return (stops[(i + j) // 2] + stops[(i + j + 1) // 2]) / 2
