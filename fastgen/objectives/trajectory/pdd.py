"""Parallel decoding distillation (PDD, 2026, arXiv:2607.26004): one call stands for many steps of the teacher.

The generator's last linear layer is a bank of heads, one for each of N intervals of time. Called where a block begins,
at (X_n, t_n), head k says the velocity of the teacher's trajectory on the k-th interval. Sums of the first of them lead
to every point of the block, their mean is one step of the student. Any division of the N intervals into blocks is a
student: one training serves every step count. Here the blocks are those of the declared counts, and begin where the
student's own sampler arrives; published code begins at any fourth interval, with up to 64 of them. Velocities are
eps - x0, slopes in the flow's time sigma / (alpha + sigma), on every process.
"""

from dataclasses import dataclass
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...models.calls import look, through
from ...models.roles import Roles
from ...models.walk import scalars_at, walk
from ...process import ROWS, Latent, Time
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import drawn_step, edges_of, intervals_of
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Field, Guidance

VELOCITY = ROWS["difference"]


@dataclass(frozen=True)
class ParallelDecoding:
    """PDD; declare every step count that the student is to have.

    Args:
        heads: fewest intervals N; a whole number of them lies between two stops of the student.
        target: velocity of the teacher on an interval: where it begins ("euler", one call), or where half a step leads
            ("midpoint", two calls and an error of second order).
        teacher_guidance: guidance of the teacher.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    heads: int = 128
    target: Literal["euler", "midpoint"] = "euler"
    teacher_guidance: AnyScale = Guidance()

    def __post_init__(self) -> None:
        if self.heads < 1:
            raise ValueError(f"heads is {self.heads}: need at least one interval")
        if self.teacher_guidance.told:
            raise ValueError("teacher_guidance.told is true, but heads are told intervals alone: set it to false")

    @property
    def needs(self) -> Needs:
        return Needs(real_score=True, sampler="ode", heads=self.heads) | self.teacher_guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        """|| u_k - sg u_teacher(X_k, t_k) ||^2 of one interval k for each row."""
        x_n, t_n, t_k, t_next = self._interval(roles, batch)
        x_k = look(roles.generator, x_n, t_n, batch.cond, {"r": t_n, "s": t_k}).at(t_k)
        aim = self._aim(self.teacher_guidance.field(roles, batch), x_k, t_k, t_next)
        u_k = through(roles.generator, x_n, t_n, batch.cond, {"r": t_k, "s": t_next}).output(VELOCITY)
        return {"velocity": (u_k - aim).square().mean()}

    def _interval(self, roles: Roles, batch: Batch) -> tuple[Latent, Time, Time, Time]:
        """The start X_n, t_n of a block, where the generator's own sampler arrives, and an interval of it per row."""
        edges = edges_of(roles, batch)
        grid = edges[:-1].tolist()
        depth = int(torch.randint(len(grid), (), generator=batch.shared_rng, device=batch.shared_rng.device))
        scalars = scalars_at(grid, ("r", "s"), sampler="ode", guidance=None)
        stops = walk(roles.generator, batch.noise, batch.cond, grid, sampler="ode", scalars=scalars)
        start = next(islice(stops, depth, None))
        every = intervals_of(roles.plan.grids, roles.process, self.heads).edges
        t_k, t_next = drawn_step(_within(every, edges[depth], edges[depth + 1]), batch)
        return start.x_t, start.t, t_k, t_next

    def _aim(self, field: Field, x_k: Latent, t_k: Time, t_next: Time) -> Latent:
        begin = field(x_k, t_k)
        if self.target == "euler":
            return begin.output(VELOCITY)
        middle = (t_k + t_next) / 2
        return field(begin.at(middle), middle).output(VELOCITY)


def _within(edges: Tensor, begin: Tensor, end: Tensor) -> Tensor:
    """The descending edges from the one nearest to `begin` to the one nearest to `end`."""
    first, last = (int((edges - time).abs().argmin()) for time in (begin, end))
    return edges[first : last + 1]
