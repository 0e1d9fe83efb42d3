"""Objectives of the consistency family against exact flow maps of Gaussians: targets, fixed points, gradients."""

import math

import pytest
import torch
from closed_forms import PROCESSES, close, only, processes
from flow_maps import clean_at, gaussian_batch, jumping, knowing_roles, mapped, two_times
from torch import Tensor
from trajectories import (
    GRID,
    NONE,
    TRAINED,
    below,
    check_cell_of_progressive_distillation,
    check_fixed_point,
    check_target_is_constant,
    check_truncated_weight,
    loss_and_slope,
)

from fastgen.models.roles import Roles
from fastgen.objectives import Needs, Objective
from fastgen.objectives.parts.curricula import Ratio
from fastgen.objectives.parts.flow_map import Interval, jumps
from fastgen.objectives.parts.solvers import SOLVERS, Field, Guidance
from fastgen.objectives.trajectory.consistency import ConsistencyTraining
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.progressive import Progressive
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut, halfway
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tscd import SegmentedConsistency
from fastgen.process import Discrete, Prediction, Process, even_grid
from fastgen.proofs.analytic import ExactDenoiser, Mixture

NAMES = ("cd", "lcm", "pcm", "tscd", "tdd", "progressive", "shortcut")


@processes
@pytest.mark.parametrize("name", NAMES)
def test_exact_flow_maps_are_the_fixed_point(process: Process, name: str):
    check_fixed_point(process, name)


@processes
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("heun", 2)])
def test_the_targets_error_is_the_solvers(process: Process, solver: str, order: int):
    """One teacher step of width dt leaves the trajectory, and so the target, by dt^(order + 1)."""
    gaps = []
    for width in (1 / 128, 1 / 256):
        roles = knowing_roles(LatentConsistency(), process, jumping(lambda t: torch.full_like(t, 0.2)))
        batch = gaussian_batch()
        t, s = batch.full(0.5), batch.full(0.2)
        x_t = process.renoise(batch.x0, t, batch.noise())
        x_r = SOLVERS[solver](Field(roles.real_score, batch.cond), x_t, t, t - width)
        gaps.append(jumps(roles, batch, Interval(t, t - width, s), x_t, x_r, ema=0.0).gap.norm().item())
    assert math.log2(gaps[0] / gaps[1]) == pytest.approx(order + 1, abs=0.15)


@processes
def test_the_shortest_jumps_are_held_to_the_velocity(process: Process):
    """In the velocity's row the loss of a network that is wrong by c is c^2, up to the curvature of 1 / 128."""
    objective = Shortcut(bootstrapped=0.0, ema=0.0, space="flow")
    roles = knowing_roles(objective, process, two_times)
    roles.generator.bias.data.copy_(torch.tensor([3.0, -4.0]))
    loss, slope = loss_and_slope(objective, roles, gaussian_batch())
    assert loss == pytest.approx(12.5, rel=0.1)
    close(slope / slope.norm(), torch.tensor([0.6, -0.8], dtype=torch.float64), tolerance=0.1)


def test_the_shortest_jumps_are_a_128th_of_the_students():
    objective = Shortcut(bootstrapped=0.5, ema=0.0)
    jump = objective._jump(torch.tensor([1.0, 0.5, 0.0]).double(), gaussian_batch(size=400), torch.arange(400) < 200)
    close((jump.t - jump.s)[200:], torch.full((200,), 0.5 / 128, dtype=torch.float64))
    assert set((0.5 / (jump.t - jump.s)[:200]).round().tolist()) == {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0}
    close(jump.r[:200], ((jump.t + jump.s) / 2)[:200])


# What is matched where


def test_progressive_distillation_does_two_steps_in_one():
    check_cell_of_progressive_distillation()


def test_rounds_of_progressive_distillation_divide_the_students_steps():
    objective = Progressive(divided=8)
    roles = knowing_roles(objective, PROCESSES["flow"], jumping(below(32, 0.0)), grids=[GRID])
    asked = record_times(roles, objective)
    close(asked * 32, (asked * 32).round())
    assert (asked * 16 != (asked * 16).round()).any()


def record_times(roles: Roles, objective: Objective) -> Tensor:
    """Times at which the generator is asked."""
    asked: list[Tensor] = []
    inner = roles.generator.belief
    roles.generator.belief = lambda process, x, t, scalars: (asked.append(t), inner(process, x, t, scalars))[1]
    objective.generator(roles, gaussian_batch())
    return torch.cat(asked)


def test_the_truncated_weight_grows_with_the_signal():
    check_truncated_weight()


@processes
def test_straight_trajectories_need_no_step_embedding(process: Process):
    """Towards one point every jump is exact: its network is the fixed point on all grids at once."""
    point = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
    objective = SelfShortcut(ema=0.5, taught=0.5)
    dirac = Mixture(point, torch.zeros(1, 2, 2, dtype=torch.float64))

    def belief(process: Process, x: Tensor, t: Tensor, scalars: object) -> Prediction:
        return Prediction.of_x0(process, x, t, point.expand(len(t), 2))

    roles = knowing_roles(objective, process, belief, grids=[even_grid(n) for n in (2, 4, 8)])
    roles.members["real_score"] = ExactDenoiser(process, dirac)
    assert sum(loss_and_slope(objective, roles, gaussian_batch(seed=seed))[0] for seed in range(2)) < 1e-12
    assert roles.target.told, "every jump asks the average"
    roles.target.bias.data.fill_(0.5)
    assert loss_and_slope(objective, roles, gaussian_batch())[0] > 1e-4


def rounded(t: Tensor, s: Tensor) -> list[tuple[float, ...]]:
    return [tuple(pair) for pair in torch.stack([t, s], dim=1).double().round(decimals=6).tolist()]


def test_who_makes_the_halves_of_a_shortcuts_own_jumps():
    """On the finest grid the teacher begins, on coarser ones the generator; the slow average ends every jump."""
    process, taught = PROCESSES["flow"], 0.3
    grids = [even_grid(n, shift=3.0) for n in (4, 2, 8)]
    objective = SelfShortcut(ema=0.5, taught=taught)
    roles = knowing_roles(objective, process, clean_at(0.0), grids=grids)
    roles.generator.bias.data.copy_(torch.tensor([0.3, -0.2]))
    roles.target.bias.data.copy_(torch.tensor([0.5, 0.1]))
    batch = gaussian_batch(size=1000)
    eps = batch.script[0]
    by_teacher, jump = objective._jump(roles, gaussian_batch(size=1000))
    assert by_teacher.double().mean().item() == pytest.approx(taught, abs=0.05)
    cells = {len(grid): set(rounded(grid, torch.cat([grid[1:], torch.zeros(1)]))) for grid in grids}
    middles = (grids[2] + torch.cat([grids[2][1:], torch.zeros(1)])) / 2
    cells[8] |= set(rounded(middles, torch.cat([middles[1:], torch.zeros(1)])))
    drawn = rounded(jump.t, jump.s)
    assert {cell for cell, taught in zip(drawn, by_teacher, strict=True) if taught} == cells[8]
    assert {cell for cell, taught in zip(drawn, by_teacher, strict=True) if not taught} == cells[2] | cells[4]
    coarse = sum(cell in cells[2] for cell in drawn) / (~by_teacher).sum().item()
    assert coarse == pytest.approx(0.5, abs=0.06), "each grid as often as the other"
    x_t, cond = process.renoise(batch.x0, jump.t, eps), batch.cond
    first = roles.generator(x_t, jump.t, cond).velocity
    first[by_teacher] = roles.real_score(x_t, jump.t, cond).velocity[by_teacher]
    x_r = x_t + (jump.r - jump.t)[:, None] * first
    assert (jump.r[by_teacher] == 0).any(), "the last half is the teacher's alone"
    x_s = x_r + (jump.s - jump.r)[:, None] * roles.target(x_r, jump.r, cond).velocity
    aim = (x_t - x_s) / (jump.t - jump.s)[:, None]
    expected = (roles.generator(x_t, jump.t, cond).velocity - aim).square().mean()
    batch.part = 1  # the average has moved already
    close(objective.generator(roles, batch)["shortcut"], expected)


def test_the_middle_of_a_jump_is_a_stop_of_the_finer_grid():
    stops = torch.tensor([0.0, 0.3, 0.5, 0.6, 1.0], dtype=torch.float64)
    t, s = torch.tensor([1.0, 1.0, 0.6, 0.5]).double(), torch.tensor([0.0, 0.5, 0.5, 0.0]).double()
    close(halfway(stops, t, s), torch.tensor([0.5, 0.6, 0.55, 0.3]).double())


# Consistency training


@processes
def test_training_at_clean_neighbours_is_regression_on_data(process: Process):
    """ECT's first stage at small noise has r at the origin: the loss is the distance to the data there."""
    objective = ConsistencyTraining(curriculum=Ratio(times=only(process_time(process, 0.5))), distance="l2")
    roles = knowing_roles(objective, process, clean_at(0.0))
    batch = gaussian_batch()
    eps = batch.script[0]
    loss, _ = loss_and_slope(objective, roles, batch)
    t = torch.full((64,), process_time(process, 0.5), dtype=torch.float64)
    r = torch.full_like(t, 1 / 1000 if isinstance(process, Discrete) else 0.0)
    there = mapped(process, process.renoise(batch.x0, t, eps), t, 0 * t)
    distance = (there - process.renoise(batch.x0, r, eps)).square().mean()
    levels = [process.sigma(u) / process.alpha(u) for u in (t, r)]
    expected = distance / (levels[0] - levels[1])[0]
    assert loss == pytest.approx(expected.item(), rel=1e-5)


def process_time(process: Process, level: float) -> float:
    return process.time_of(torch.tensor([-2 * math.log(level)], dtype=torch.float64)).item()


# Gradients


@pytest.mark.parametrize("name", TRAINED)
def test_targets_are_constants(name: str):
    check_target_is_constant(name)


@pytest.mark.parametrize("kind", [LatentConsistency, SegmentedConsistency, Shortcut, SelfShortcut])
def test_a_target_that_stands_still_is_refused(kind: type):
    with pytest.raises(ValueError, match="ema is 1"):
        kind(ema=1.0)


def test_who_needs_a_target_and_deterministic_steps():
    taught, steps = Needs(images=True, real_score=True), Needs(sampler="ode")
    assert LatentConsistency(teacher_guidance=NONE).needs == taught | Needs(target=True)
    assert LatentConsistency(teacher_guidance=NONE, ema=0.0).needs == taught
    assert SegmentedConsistency(teacher_guidance=NONE, ema=0.0).needs == taught | steps
    assert SegmentedConsistency(teacher_guidance=NONE, ema=0.0, segments=1).needs == taught
    assert Shortcut(ema=0.0).needs == taught | steps | Needs(scalars={"generator": {"s"}})
    both = Needs(target=True, scalars={"generator": {"s"}, "target": {"s"}})
    assert Shortcut().needs == taught | steps | both


def test_guidance_of_data_is_refused():
    with pytest.raises(ValueError, match="velocity=real_score"):
        Shortcut(velocity="data", teacher_guidance=Guidance(2.0, 2.0))
