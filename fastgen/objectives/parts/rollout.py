"""How the generator is run in training: always on a grid that the exported scheduler stops at."""

from collections.abc import Callable
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from ...models.calls import through
from ...models.contract import Denoiser
from ...models.roles import Roles
from ...models.walk import walk
from ...process import Latent, Time
from .base import Batch, Landing

Rollout = Callable[..., Landing]
"""(roles, batch) -> where it ended; those of several steps also take `first`, the step below which none ends."""

RolloutName = Literal["one_step", "backward_simulation", "noised_data", "trajectory", "phased"]


def one_step(roles: Roles, batch: Batch) -> Landing:
    """Noise to a clean sample in one call, at the first time of a grid."""
    t = first_time(roles, batch)
    return _jump(roles, batch, roles.process.prior(batch.noise(), t), t)


def first_time(roles: Roles, batch: Batch) -> Time:
    """Where a grid begins, [B]."""
    return batch.full(_drawn_grid(roles, batch)[0])


def backward_simulation(roles: Roles, batch: Batch, *, first: int = 0) -> Landing:
    """The generator's own sampling up to a random step of the grid (DMD2, arXiv:2405.14867, section 4.5).

    Earlier steps go as the exported sampler goes, without gradient; the depth is the same on every rank.
    """
    grid = _drawn_grid(roles, batch)
    depth = _drawn(len(grid), batch, first=first)
    x_t, t = sampled(roles, batch, grid, depth=depth)
    return _jump(roles, batch, x_t, t, calls=depth + 1)


def jumped_off(roles: Roles, batch: Batch) -> tuple[Latent, Time]:
    """x_t and t where the generator's own sampling stands before a random step of a grid, without gradient."""
    grid = _drawn_grid(roles, batch)
    return sampled(roles, batch, grid, depth=_drawn(len(grid), batch))


def predicted(model: Denoiser, roles: Roles, batch: Batch) -> Latent:
    """The clean samples that a denoiser predicts at a random step of its own sampling by the student's plan."""
    grid = _drawn_grid(roles, batch)
    stops = walk(model, batch.noise, batch.cond, grid.tolist(), sampler=roles.plan.sampler)
    (reached,) = islice(stops, _drawn(len(grid), batch) + 1, None, len(grid) + 1)
    assert reached.belief is not None, "there is a stop before it"
    return reached.belief.x0


def noised_data(roles: Roles, batch: Batch, *, first: int = 0) -> Landing:
    """Real samples renoised to a random time of the grid; at its first time, pure noise. Needs images."""
    grid = _drawn_grid(roles, batch)
    depth = _drawn(len(grid), batch, first=first)
    t, eps = batch.full(grid[depth]), batch.noise()
    x_t = roles.process.prior(eps, t) if depth == 0 else roles.process.renoise(batch.x0, t, eps)
    return _jump(roles, batch, x_t, t)


def trajectory(roles: Roles, batch: Batch, *, first: int = 0) -> Landing:
    """The generator's own deterministic sampling, ended by one step to the following time of the grid.

    TDM (Luo et al. 2025, arXiv:2503.06674): the sample at the end of each segment is matched there, at s > 0.
    """
    grid = _drawn_grid(roles, batch)
    depth = _drawn(len(grid), batch, first=first)
    x_t, t = sampled(roles, batch, grid, depth=depth)
    return _jump(roles, batch, x_t, t, to=([*grid.tolist(), 0.0])[depth + 1], calls=depth + 1)


def phased(roles: Roles, batch: Batch, *, phases: int = 2, experts: bool = False, first: int = 0) -> Landing:
    """The generator's own sampling to a random step, ended by a jump to the end of that step's phase.

    Phased DMD (Fan et al. 2025, arXiv:2510.27684, section 3.2); the grid is split into `phases` runs of steps, or
    into those of the two experts.
    """
    grid = _drawn_grid(roles, batch)
    depth = _drawn(len(grid), batch, first=first)
    x_t, t = sampled(roles, batch, grid, depth=depth)
    split = [int((grid >= roles.plan.boundary).sum())] if experts else phases
    ends = torch.tensor_split(torch.cat([grid[1:], grid.new_zeros(1)]), split)
    to = [float(end[-1]) for end in ends for _ in end][depth]
    return _jump(roles, batch, x_t, t, to=to, calls=depth + 1)


ROLLOUTS: dict[RolloutName, Rollout] = {
    "one_step": one_step,
    "backward_simulation": backward_simulation,
    "noised_data": noised_data,
    "trajectory": trajectory,
    "phased": phased,
}


def land(rollout: RolloutName | Rollout, roles: Roles, batch: Batch, *, first: int = 0) -> Landing:
    """Runs the rollout with gradient and leaves it, detached, in the batch for the turns that share it.

    Args:
        first: the step below which it does not end; above 0 of rollouts of several steps alone.
    """
    run = ROLLOUTS[rollout] if isinstance(rollout, str) else rollout
    landing = run(roles, batch, first=first) if first else run(roles, batch)
    batch.landing = landing.detach()
    return landing


def landing_of(rollout: RolloutName | Rollout, roles: Roles, batch: Batch, *, first: int = 0) -> Landing:
    """The batch's rollout, detached: that of an earlier turn if they share the batch, otherwise a fresh one."""
    if batch.landing is not None:
        return batch.landing
    with torch.no_grad():
        return land(rollout, roles, batch, first=first)


def _drawn_grid(roles: Roles, batch: Batch) -> Tensor:
    return roles.plan.grids[_drawn(len(roles.plan.grids), batch)]


def _drawn(count: int, batch: Batch, *, first: int = 0) -> int:
    """An index below `count`, at least `first`, the same on every rank."""
    return int(torch.randint(first, count, (), generator=batch.shared_rng, device=batch.shared_rng.device))


def sampled(roles: Roles, batch: Batch, grid: Tensor, *, depth: int) -> tuple[Latent, Time]:
    """x_t and t after `depth` steps of the exported sampler, without gradient; after all of them the clean sample."""
    stops = walk(roles.generator, batch.noise, batch.cond, grid.tolist(), sampler=roles.plan.sampler)
    reached = next(islice(stops, depth, None))
    return reached.x_t, reached.t


def _jump(roles: Roles, batch: Batch, x_t: Tensor, t: Tensor, *, to: float = 0.0, calls: int = 1) -> Landing:
    """One call of the generator with gradient, and its deterministic step to that time."""
    belief = through(roles.generator, x_t, t, batch.cond)
    if not to:
        return Landing(belief.x0, None, t, belief.x0, calls=calls, x_t=x_t)
    s = batch.full(to)
    return Landing(belief.at(s), s, t, belief.x0, calls=calls, x_t=x_t)
