"""How the generator is run in training: always on a grid that the exported scheduler stops at."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from ..models.roles import Roles
from .base import Batch, Landing
from .ops import look, through

Rollout = Callable[[Roles, Batch], Landing]
RolloutName = Literal["one_step", "backward_simulation", "noised_data"]


def one_step(roles: Roles, batch: Batch) -> Landing:
    """Noise to a clean sample in one call, at the first time of a grid."""
    t = batch.full(_drawn_grid(roles, batch)[0])
    return _clean(roles, batch, roles.process.prior(batch.noise(), t), t)


def backward_simulation(roles: Roles, batch: Batch) -> Landing:
    """The generator's own sampling up to a random step of the grid (DMD2, arXiv:2405.14867, section 4.5).

    Earlier steps go as the exported sampler goes, without gradient; the depth is the same on every rank.
    """
    grid = _drawn_grid(roles, batch)
    depth = _drawn(len(grid), batch)
    t = batch.full(grid[0])
    x_t = roles.process.prior(batch.noise(), t)
    for following in grid[1 : depth + 1]:
        belief, t = look(roles.generator, x_t, t, batch.cond), batch.full(following)
        x_t = belief.at(t) if roles.sampler == "ode" else roles.process.renoise(belief.x0, t, batch.noise())
    return _clean(roles, batch, x_t, t)


def noised_data(roles: Roles, batch: Batch) -> Landing:
    """Real samples renoised to a random time of the grid; at its first time, pure noise. Needs images."""
    grid = _drawn_grid(roles, batch)
    depth = _drawn(len(grid), batch)
    t, eps = batch.full(grid[depth]), batch.noise()
    x_t = roles.process.prior(eps, t) if depth == 0 else roles.process.renoise(batch.x0, t, eps)
    return _clean(roles, batch, x_t, t)


ROLLOUTS: dict[RolloutName, Rollout] = {
    "one_step": one_step,
    "backward_simulation": backward_simulation,
    "noised_data": noised_data,
}


def land(rollout: RolloutName, roles: Roles, batch: Batch) -> Landing:
    """Runs the rollout with gradient and leaves it, detached, in the batch for the turns that share it."""
    landing = ROLLOUTS[rollout](roles, batch)
    batch.landing = Landing(landing.x.detach(), landing.s, landing.t)
    return landing


def landed(rollout: RolloutName, roles: Roles, batch: Batch) -> Landing:
    """The batch's rollout, detached: that of an earlier turn if they share the batch, otherwise a fresh one."""
    if batch.landing is not None:
        return batch.landing
    with torch.no_grad():
        return land(rollout, roles, batch)


def _drawn_grid(roles: Roles, batch: Batch) -> Tensor:
    return roles.grids[_drawn(len(roles.grids), batch)]


def _drawn(count: int, batch: Batch) -> int:
    """An index below `count`, the same on every rank."""
    return int(torch.randint(count, (), generator=batch.shared_rng, device=batch.shared_rng.device))


def _clean(roles: Roles, batch: Batch, x_t: Tensor, t: Tensor) -> Landing:
    x0 = through(roles.generator, x_t, t, batch.cond).x0
    return Landing(x0, s=torch.zeros_like(t), t=t)
