"""Verbs of the consistency family: times, the target network, and the two jumps that have to agree."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.calls import NONE, Scalars, look, through
from ...models.conditioning import sent
from ...models.contract import Denoiser
from ...models.head_bank import Intervals
from ...models.masters import moved
from ...models.roles import Roles
from ...process import Latent, Process, Time, pad_like
from ...seeds import integers
from .base import Batch
from .ops import Noised

SAME = 1e-6
"""Two times so near each other are one, found by two schedulers' arithmetic."""


@dataclass(frozen=True)
class Interval:
    """Times [B], t > r >= s: the jump from t to s has to end where the one from r does."""

    t: Time
    r: Time
    s: Time


@dataclass(frozen=True)
class Jumps:
    """Where the generator's jump ends, with gradient, and where it should have ended, at times s [B]."""

    generated: Latent
    target: Latent
    s: Time

    @property
    def gap(self) -> Latent:
        return self.generated - self.target


def origin(process: Process, device: torch.device | str = "cpu") -> Tensor:
    """The clean end of training: clock 0, which is step 0 (t = 1 / N) of a discrete process and t = 0 otherwise.

    The latent-consistency family ends its teacher's trajectories there, at a little noise, not at clean data.
    """
    return process.from_clock(torch.zeros((), dtype=torch.float64, device=device))


def edges_of(roles: Roles, batch: Batch) -> Tensor:
    """The times [n + 1] between the steps of one of the student's grids, from its first to 0; the same on all ranks.

    On the host, as are all grids until rows are drawn from them: how many times there are is known without waiting.
    """
    draw = torch.randint(len(roles.plan.grids), (), generator=batch.shared_rng, device=batch.shared_rng.device)
    grid = roles.plan.grids[int(draw)].double()
    return torch.cat([grid, grid.new_zeros(1)])


def stops_of(roles: Roles, batch: Batch) -> Tensor:
    """All times [k] where one of the student's grids stops, ascending from 0; on the batch's device."""
    return sent(merged(torch.cat([torch.zeros(1), *roles.plan.grids]).double()), batch.rng.device)


def merged(times: Tensor) -> Tensor:
    """Ascending; times that agree are one."""
    ascending: Tensor = times.sort().values
    return ascending[torch.cat([ascending.new_ones(1).bool(), ascending.diff() > SAME])]


def divided(edges: Tensor, count: int) -> Tensor:
    """`count` cells that are even along the polyline of the edges: [count + 1] descending times.

    Twice as many as the student has steps halve each of them, half as many merge them in twos.
    """
    last = len(edges) - 1
    place = torch.arange(count + 1, dtype=torch.float64, device=edges.device) * last / count
    left = place.floor().long().clamp(max=last - 1)
    return torch.lerp(edges[left], edges[left + 1], place - left)


def cells(edges: Tensor, count: int) -> Tensor:
    """The edges with at least `count` cells between them, a whole number in each: [cells + 1] descending times."""
    steps = len(edges) - 1
    return divided(edges, steps * math.ceil(count / steps))


def intervals_of(grids: Sequence[Tensor], process: Process, count: int) -> Intervals:
    """At least `count` intervals of time, a whole number in each between neighbouring stops of a student's grids."""
    stops = merged(torch.cat([torch.zeros(1), *grids]).double())
    return Intervals.of(process, cells(stops.flip(0), count))


def drawn_step(grid: Tensor, batch: Batch) -> tuple[Time, Time]:
    """Both ends t > s [B] of evenly drawn cells of a descending grid."""
    i = integers(batch.rng, len(grid) - 1, batch.size)
    grid = sent(grid, batch.rng.device)
    return grid[i], grid[i + 1]


def drawn_cell(grid: Tensor, batch: Batch, process: Process) -> tuple[Time, Time]:
    """Both ends as `drawn_step` draws them, but none below the origin."""
    t, r = drawn_step(grid, batch)
    return t, r.clamp(min=origin(process, r.device))


def segment_end(edges: Tensor, r: Time, process: Process) -> Time:
    """The highest edge at or below r [B]; for the last segment the origin."""
    ascending = sent(edges.flip(0), r.device)
    below = torch.searchsorted(ascending, r, right=True) - 1
    return ascending[below].clamp(min=origin(process, r.device))


def noised(roles: Roles, batch: Batch, t: Time) -> Noised:
    """Real samples with fresh noise at times t [B]."""
    return Noised.of(roles.process, batch.x0, t, batch.noise())


def check_decay(ema: float) -> None:
    """Raises ValueError for a target that would stand still, or would not be an average."""
    if not 0 <= ema < 1:
        raise ValueError(f"ema is {ema}: need 0 (the target is the generator itself) <= ema < 1, such as 0.95")


def follow(roles: Roles, batch: Batch, ema: float) -> None:
    """Moves the target network towards the generator, once per generator update; it needs a target role of its own.

    Called before the target is asked, so that it has seen every update of the generator so far.

    Raises:
        ValueError: the target has other parameters than the generator.
    """
    if not ema or batch.part:
        return
    mean: list[Tensor] = [*roles.parameters("target")]
    live = roles.parameters("generator")
    if not mean or [p.shape for p in mean] != [p.shape for p in live]:
        raise ValueError(f"the target has {len(mean)} parameters and the generator {len(live)}: give it its own copy")
    moved(mean, live, 1 - ema)


def target_of(roles: Roles, ema: float) -> Denoiser:
    """The network that gives the target, without gradient: the moving average, or at ema = 0 the generator."""
    return roles.target if ema else roles.generator


def jumps(
    roles: Roles, batch: Batch, interval: Interval, x_t: Latent, x_r: Latent, *, ema: float, scalars: Scalars = NONE
) -> Jumps:
    """f(x_t, t, s) and sg f^-(x_r, r, s), with f^-(x, s, s) = x also where s = 0 lies below the origin.

    Both calls have the same dropout masks.
    """
    with same_masks(x_t):
        aim = look(target_of(roles, ema), x_r, interval.r, batch.cond, scalars).at(interval.s)
    ended = interval.r <= interval.s.clamp(min=origin(roles.process, interval.s.device))
    aim = torch.where(pad_like(ended, x_r), x_r, aim)
    return Jumps(through(roles.generator, x_t, interval.t, batch.cond, scalars).at(interval.s), aim, interval.s)


@contextmanager
def same_masks(x: Tensor) -> Iterator[None]:
    """What follows draws the same dropout masks as what is run within."""
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        yield
