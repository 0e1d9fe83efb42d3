"""Shortcut models (Frans et al. 2024, arXiv:2410.12557): one long jump ends where two of half its length do.

On every process the aim is the prediction whose step ends there, on a flow the mean of the two velocities (eq. 4).
The shortest jumps learn the teacher's or the data's velocity.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ...models.calls import Scalars, look, through
from ...models.conditioning import Conditioning, sent
from ...models.contract import Denoiser
from ...models.roles import Roles
from ...process import ROWS, Latent, pad_like
from ...seeds import integers, places, uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import Interval, check_decay, divided, edges_of, follow, noised, target_of
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.solvers import AnyScale, Guidance, landing_on
from ..parts.velocity import Velocity, check_velocity, needs_velocity, trajectory_of


@dataclass(frozen=True)
class Shortcut:
    """Shortcuts of a generator that is told where its jump ends.

    Args:
        levels: the student's steps are halved so many times; the shortest are trained as velocities.
        bootstrapped: share of rows with long jumps.
        velocity: whose velocity the shortest jumps have: the teacher's, or the data's.
        teacher_guidance: guidance of the teacher.
        ema: decay of the target.
        space: row in which errors are squared; "difference" is a flow's velocity.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    levels: int = 7
    bootstrapped: float = 0.125
    velocity: Velocity = "real_score"
    teacher_guidance: AnyScale = Guidance()
    ema: float = 0.999
    space: RowName = "difference"

    def __post_init__(self) -> None:
        check_decay(self.ema)
        check_velocity(self)
        if self.levels < 1 or not 0 <= self.bootstrapped <= 1:
            raise ValueError(
                f"levels is {self.levels} and bootstrapped {self.bootstrapped}: need at least one level and a share "
                "of rows in [0, 1]"
            )

    @property
    def needs(self) -> Needs:
        known = ("generator", "target") if self.ema else ("generator",)
        own = Needs(sampler="ode", scalars={role: {"s"} for role in known})
        return needs_velocity(self, target=self.ema > 0) | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        follow(roles, batch, self.ema)
        long = self._long(batch)
        jump = self._jump(edges_of(roles, batch), batch, long)
        start = noised(roles, batch, jump.t)
        followed = trajectory_of(self, roles, batch, start)
        scalars, row = {"s": jump.s, **followed.scalars}, ROWS[self.space]
        aim = followed.belief.output(row)
        if self.bootstrapped:
            rows = (
                long.nonzero().flatten() if long.any() else torch.zeros(1, dtype=torch.int64)
            )  # every process has to call the networks
            at = sent(rows, aim.device)
            some = Interval(jump.t[at], jump.r[at], jump.s[at])
            first = {name: value[at] for name, value in followed.scalars.items()}
            x_t, cond = start.x_t[at], batch.cond.index(rows)
            end = two_jumps(target_of(roles, self.ema), x_t, some, cond, first)
            jumped = aim.index_copy(
                0, at, landing_on(roles.process, x_t, some.t, end, some.s).output(row).to(aim.dtype)
            )
            aim = torch.where(pad_like(sent(long, aim.device), aim), jumped, aim)
        error = through(roles.generator, start.x_t, jump.t, batch.cond, scalars).output(row) - aim
        return {"shortcut": error.square().mean()}

    def _long(self, batch: Batch) -> Tensor:
        """Which rows [B] have long jumps, on the host: evenly spread over the whole batch, however it is split."""
        ends = places(batch.rng, batch.size).double() * self.bootstrapped + 0.5
        return (ends + self.bootstrapped).floor() > ends.floor()

    def _jump(self, edges: Tensor, batch: Batch, long: Tensor) -> Interval:
        """Beginning, middle and end of each row's jump: of a drawn level where it is long, else of the last."""
        steps, device = len(edges) - 1, batch.rng.device
        grid = sent(divided(edges, steps * 2**self.levels), device)
        level = integers(batch.rng, self.levels, batch.size)
        level = torch.where(sent(long, device), level, self.levels)
        u = uniform(batch.rng, batch.size, dtype=torch.float64)
        width = 2 ** (self.levels - level)
        first = (u * steps * 2**level).long() * width
        return Interval(grid[first], grid[first + width // 2], grid[first + width])


def two_jumps(model: Denoiser, x_t: Latent, jump: Interval, cond: Conditioning, scalars: Scalars) -> Latent:
    """The sample at s by way of r, without gradient."""
    x_r = look(model, x_t, jump.t, cond, {"s": jump.r, **scalars}).at(jump.r)
    return look(model, x_r, jump.r, cond, {"s": jump.s, **scalars}).at(jump.s)
