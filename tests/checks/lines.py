"""Lines between the ends of exact flow maps of Gaussians, and networks that know them."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from closed_forms import MEAN, PROCESSES, close, only
from flow_maps import VALUES, VECTORS, Belief, exactly, gaussian_batch, joined, knowing_roles, mapped
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.roles import Roles
from fastgen.objectives import Objective, Pair
from fastgen.objectives.parts.solvers import SOLVERS
from fastgen.objectives.regression.reflow import Reflow
from fastgen.objectives.trajectory.perflow import PiecewiseRectifiedFlow
from fastgen.process import ROWS, Prediction, Process, Uniform, even_grid
from fastgen.sampling.sampler import ode

BIAS = torch.tensor([0.3, -0.2], dtype=torch.float64)
GRIDS = {"reflow": [even_grid(1)], "perflow": [even_grid(4, shift=2.0), even_grid(2, shift=2.0)]}
EXACT: dict[str, Objective] = {"reflow": Reflow(), "perflow": PiecewiseRectifiedFlow()}


def window_of(t: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Beginning and end of the step of a descending grid that each time lies in."""
    ascending = torch.cat([grid.new_zeros(1), grid.flip(0)]).double()
    above = torch.searchsorted(ascending, (t - 1e-9).clamp(min=0)).clamp(1, len(grid))
    return ascending[above], ascending[above - 1]


def on_lines(grid: Tensor) -> Belief:
    """A network that knows of each point the line of its window, from x_a to X_{a -> b}(x_a), by plain algebra."""

    def belief(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
        a, b = window_of(t, grid)
        at_a, at_b = (process.alpha(u)[:, None] ** 2 * VALUES + process.sigma(u)[:, None] ** 2 for u in (a, b))
        unit = joined(process, torch.ones_like(at_a), a, (at_b / at_a).sqrt(), b)
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        from_mean = (x - alpha * MEAN) @ VECTORS / (alpha * unit.x0 + sigma * unit.eps)
        x_a = process.alpha(a)[:, None] * MEAN + from_mean @ VECTORS.T
        return replace(joined(process, x_a, a, mapped(process, x_a, a, b), b), t=t)

    return belief


def paired(process: Process, *, seed: int = 0, size: int = 64) -> object:
    """A batch with noises and where the exact flow leads from them."""
    batch = gaussian_batch(seed=seed, size=size)
    eps, one = batch.noise(), batch.full(1.0)
    batch.pairs = Pair(eps, mapped(process, process.prior(eps, one), one, 0 * one))
    return batch


def lined(process: Process, name: str) -> Roles:
    grids = GRIDS[name]
    return knowing_roles(EXACT[name], process, on_lines(min(grids, key=len)), grids=grids, row=ROWS["difference"])


def check_lines_are_the_fixed_point(process: Process, name: str) -> None:
    """No loss, no gradient; of a network whose eps - x0 is wrong by c the mean square of c and its slope."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(SOLVERS, "ddim", exactly(process))
        for seed in range(2):
            roles = lined(process, name)
            loss, slope = loss_and_slope(EXACT[name], roles, paired(process, seed=seed))
            assert loss < 1e-8
            assert slope.norm() < 1e-5
            roles.generator.bias.data.copy_(BIAS)
            loss, slope = loss_and_slope(EXACT[name], roles, paired(process, seed=seed))
            assert loss == pytest.approx(BIAS.square().mean().item(), rel=1e-4)
            close(slope, BIAS, tolerance=1e-4)


def check_every_grid_is_exact(process: Process) -> None:
    """From noise to the pair's own sample in one step, and in any steps."""
    batch, roles = paired(process), lined(process, "reflow")
    for times in ([1.0], [1.0, 0.7, 0.2], even_grid(7, shift=3.0).tolist()):
        close(ode(roles.generator, batch.pair.eps, batch.cond, times), batch.pair.x0, tolerance=1e-4)


def check_reflow_by_hand() -> None:
    """On a flow whose first stop is 0.8, half way from the unit noise that a pipeline starts with to the sample."""
    process, objective = PROCESSES["flow"], Reflow(times=only(0.5))
    roles = knowing_roles(objective, process, on_lines(even_grid(1)), grids=[torch.tensor([0.8]).double()])
    roles.generator.bias.data.copy_(BIAS)
    batch = paired(process)
    start, t = batch.pair.eps, batch.full(0.4)
    velocity = (start - batch.pair.x0) / 0.8
    found = roles.generator(batch.pair.x0 + 0.4 * velocity, t, batch.cond).velocity
    loss, _ = loss_and_slope(objective, roles, batch)
    assert loss == pytest.approx((found - velocity).square().mean().item(), rel=1e-6)


def check_window_by_hand() -> None:
    """Two Euler steps of the exact velocity, and the straight line between their ends, three quarters up."""
    process, objective = PROCESSES["flow"], PiecewiseRectifiedFlow(substeps=2, times=Uniform(0.75 - 1e-9, 0.75))
    roles = knowing_roles(objective, process, on_lines(even_grid(1)), grids=[torch.tensor([0.6]).double()])
    roles.generator.bias.data.copy_(BIAS)
    batch = gaussian_batch()
    x = start = process.renoise(batch.x0, batch.full(0.6), batch.script[0])
    for t in (0.6, 0.3):
        x = x - 0.3 * roles.real_score(x, batch.full(t), batch.cond).velocity
    velocity = (start - x) / 0.6
    found = roles.generator(start - 0.15 * velocity, batch.full(0.45), batch.cond).velocity
    loss, _ = loss_and_slope(objective, roles, batch)
    assert loss == pytest.approx((found - velocity).square().mean().item(), rel=1e-6)


def seen_times(name: str) -> Callable[[], Tensor]:
    """The times that the generator is asked at."""

    def seen() -> Tensor:
        roles, asked = lined(PROCESSES["flow"], name), []
        roles.generator.register_forward_pre_hook(lambda module, given: asked.append(given[1]))
        EXACT[name].generator(roles, paired(PROCESSES["flow"], size=4000))
        return torch.cat(asked)

    return seen


def check_windows_are_learned_alike() -> None:
    """As many times in each, even within it; the windows are those of the shortest grid."""
    seen, (high, middle) = seen_times("perflow")(), min(GRIDS["perflow"], key=len).double()
    upper = seen > middle
    assert upper.double().mean().item() == pytest.approx(0.5, abs=0.03)
    close(seen[upper].mean(), (high + middle) / 2, tolerance=0.02)
    close(seen[~upper].mean(), middle / 2, tolerance=0.02)
