"""Shortcutting a pretrained flow without a step embedding (SCFM, arXiv:2510.17858, after the published code).

The network is not told how far it jumps: it learns the jumps of the student's own grids only, so that a stock
pipeline runs it. A jump ends where two of half its length do, and the second of these is the generator's slow
average's. The first is the teacher's on the finest grid, and the generator's on coarser ones, where the published code
has a fast average of decay 0.99. The middles of the finest grid's steps are no stops of the student, and their second
halves would be asked of a network that nobody trains there. The code moves its grids by a drawn shift; here jumps as
long begin at the middles too.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...models.calls import look, through
from ...models.conditioning import sent
from ...models.roles import Roles
from ...process import ROWS, Time, pad_like
from ...seeds import integers, uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import Interval, check_decay, divided, follow, noised, stops_of, target_of
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName, landing_on


@dataclass(frozen=True)
class SelfShortcut:
    """SCFM; declare several step counts that double, such as [2, 4, 8, 16].

    Args:
        taught: share of rows with the finest grid's steps, where the teacher begins; all if there is no coarser one.
        teacher_guidance: guidance of the teacher.
        solver: solver of the teacher.
        substeps: solver steps of the teacher in its half of a jump.
        ema: decay of the target.
        space: row in which errors are squared; "difference" is a flow's velocity.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    taught: float = 0.4
    teacher_guidance: AnyScale = Guidance()
    solver: SolverName = "ddim"
    substeps: int = 1
    ema: float = 0.999
    space: RowName = "difference"

    def __post_init__(self) -> None:
        check_decay(self.ema)
        if not 0 < self.taught <= 1:
            raise ValueError(f"taught is {self.taught}: need a share of rows in (0, 1], the teacher has to come in")

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=True, sampler="ode", uneven=True) | self.teacher_guidance.needs(
            target=self.ema > 0
        )

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        follow(roles, batch, self.ema)
        taught, jump = self._jump(roles, batch)
        x_t, field = noised(roles, batch, jump.t).x_t, self.teacher_guidance.field(roles, batch)
        scalars, row = self.teacher_guidance.scalars(batch, field), ROWS[self.space]
        by_teacher = SOLVERS[self.solver](field, x_t, jump.t, jump.r, substeps=self.substeps)
        x_r = look(roles.generator, x_t, jump.t, batch.cond, scalars).at(jump.r)
        x_r = torch.where(pad_like(taught, x_r), by_teacher, x_r)
        end = look(target_of(roles, self.ema), x_r, jump.r, batch.cond, scalars).at(jump.s)
        end = torch.where(pad_like(jump.r > jump.s, end), end, x_r)
        aim = landing_on(roles.process, x_t, jump.t, end, jump.s).output(row)
        error = through(roles.generator, x_t, jump.t, batch.cond, scalars).output(row) - aim
        return {"shortcut": error.square().mean()}

    def _jump(self, roles: Roles, batch: Batch) -> tuple[Tensor, Interval]:
        """Which rows [B] are taught, and beginning, middle and end of each row's jump."""
        finest = max(roles.plan.grids, key=len)
        coarser = [grid for grid in roles.plan.grids if len(grid) < len(finest)]
        taught = uniform(batch.rng, batch.size) < (self.taught if coarser else 1.0)
        short = halved_step(finest, batch)
        t, s = drawn_jump(coarser or [finest], batch)
        long = Interval(t, halfway(stops_of(roles, batch), t, s), s)
        mixed = (torch.where(taught, *ends) for ends in zip(astuple(short), astuple(long), strict=True))
        return taught, Interval(*mixed)


def halved_step(grid: Tensor, batch: Batch) -> Interval:
    """One as long as a step of the grid, from one of its stops or middles; the last middle's ends half way."""
    count, device = 2 * len(grid), batch.rng.device
    halves = sent(divided(torch.cat([grid.double(), torch.zeros(1)]), count), device)
    i = integers(batch.rng, count, batch.size)
    return Interval(halves[i], halves[i + 1], halves[(i + 2).clamp(max=count)])


def drawn_jump(grids: Sequence[Tensor], batch: Batch) -> tuple[Time, Time]:
    """Both ends t > s [B] of a step of one of the grids, all of them equally often."""
    device = batch.rng.device
    edges = pad_sequence([grid.double() for grid in grids], batch_first=True)
    edges = sent(torch.cat([edges, edges.new_zeros(len(grids), 1)], dim=1), device)
    which = integers(batch.rng, len(grids), batch.size)
    steps = sent(torch.tensor([len(grid) for grid in grids]), device)[which]
    u = uniform(batch.rng, batch.size, dtype=torch.float64)
    i = (u * steps).long()
    return edges[which, i], edges[which, i + 1]


def halfway(stops: Tensor, t: Time, s: Time) -> Time:
    """The middle one of the ascending stops from s to t [B], or the mean of the two in the middle."""
    i, j = ((stops - end[:, None]).abs().argmin(dim=1) for end in (s, t))
    return (stops[(i + j) // 2] + stops[(i + j + 1) // 2]) / 2
