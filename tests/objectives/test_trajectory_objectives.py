"""Objectives of the consistency family against exact flow maps of Gaussians: targets, fixed points, gradients."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from closed_forms import PLANE, PROCESSES, close, only, processes, streams
from flow_maps import Belief, clean_at, exactly, gaussian_batch, jumping, knowing_roles, mapped, two_times
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives import Batch, Needs, Objective
from fastgen.objectives.parts.curricula import Even, Ratio
from fastgen.objectives.parts.flow_map import Interval, jumps
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import SOLVERS, Field, Guidance
from fastgen.objectives.trajectory.consistency import ConsistencyDistillation, ConsistencyTraining
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.progressive import Progressive
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut, halfway
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tdd import TargetDriven
from fastgen.objectives.trajectory.tscd import SegmentedConsistency
from fastgen.process import Discrete, Prediction, Process, even_grid
from fastgen.proofs.analytic import ExactDenoiser, Mixture
from fastgen.proofs.toy import toy_batch, toy_roles

NONE, NO_GAN = Guidance(), GAN(0.0, kind="hinge")
GRID = even_grid(4)


def below(steps: int, least: float) -> Callable[[Tensor], Tensor]:
    """The end of the segment, of `steps` even ones, that a time lies in; the times on an edge belong to the lower."""
    return lambda t: ((torch.ceil(t * steps - 1e-9) - 1) / steps).clamp(min=least)


def known(name: str, process: Process) -> tuple[Objective, Belief]:
    """An objective, and what a network says that is its fixed point where the teacher's solver makes no error."""
    least = 1 / 1000 if isinstance(process, Discrete) else 0.0
    quarters, halves = jumping(below(4, least)), jumping(below(2, least))
    table: dict[str, tuple[Objective, Belief]] = {
        "cd": (ConsistencyDistillation(solver="ddim", curriculum=Even(18, decay=0.0)), clean_at(least)),
        "lcm": (LatentConsistency(teacher_guidance=NONE, ema=0.0), clean_at(least)),
        "pcm": (PhasedConsistency(teacher_guidance=NONE, gan=NO_GAN), quarters),
        "tscd": (SegmentedConsistency(teacher_guidance=NONE, ema=0.0, segments=2), halves),
        "tdd": (TargetDriven(teacher_guidance=NONE, gan=NO_GAN, dropout=0.0, window=0.0, jitter=0.0), quarters),
        "progressive": (Progressive(), jumping(below(4, 0.0))),
        "shortcut": (Shortcut(bootstrapped=1.0, ema=0.0), two_times),
    }
    return table[name]


NAMES = ("cd", "lcm", "pcm", "tscd", "tdd", "progressive", "shortcut")


def loss_and_slope(objective: Objective, roles: Roles, batch: Batch) -> tuple[float, Tensor]:
    with roles.training(("generator",)):
        loss = sum(objective.generator(roles, batch).values())
        assert loss.requires_grad, "the loss does not reach the generator"
        (slope,) = torch.autograd.grad(loss, roles["generator"].bias)
    return loss.item(), slope


def check_fixed_point(process: Process, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact flow maps of network and solver: no loss, no gradient. A biased network is pulled back."""
    monkeypatch.setitem(SOLVERS, "ddim", exactly(process))
    monkeypatch.setattr("fastgen.objectives.trajectory.progressive.ddim", exactly(process))
    objective, belief = known(name, process)
    roles = knowing_roles(objective, process, belief, grids=[GRID])
    for seed in range(2):
        loss, slope = loss_and_slope(objective, roles, gaussian_batch(seed=seed))
        assert loss < 1e-9
        assert slope.norm() < 1e-6
    if name == "shortcut":
        return  # two biased halves make a biased whole: its velocities hold it, see below
    bias = torch.tensor([0.3, -0.2], dtype=torch.float64)
    roles.generator.bias.data.copy_(bias)
    loss, slope = loss_and_slope(objective, roles, gaussian_batch())
    assert loss > 1e-6
    assert (slope @ bias) / (slope.norm() * bias.norm()) > 0.9


@processes
@pytest.mark.parametrize("name", NAMES)
def test_exact_flow_maps_are_the_fixed_point(process: Process, name: str, monkeypatch: pytest.MonkeyPatch):
    check_fixed_point(process, name, monkeypatch)


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
    jump = objective._jump(torch.tensor([1.0, 0.5, 0.0]).double(), gaussian_batch(size=400), 200)
    close((jump.t - jump.s)[200:], torch.full((200,), 0.5 / 128, dtype=torch.float64))
    assert set((0.5 / (jump.t - jump.s)[:200]).round().tolist()) == {1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0}
    close(jump.r[:200], ((jump.t + jump.s) / 2)[:200])


# What is matched where


def check_cell_of_progressive_distillation() -> None:
    """Two DDIM steps by hand; max(SNR, 1) times the squared error of x0, on the variance-preserving process."""
    process, objective = PROCESSES["vp"], Progressive()
    roles = knowing_roles(objective, process, clean_at(0.0), grids=[even_grid(1)])
    batch = gaussian_batch()
    eps = batch.script[0]
    loss, _ = loss_and_slope(objective, roles, batch)
    times = [torch.tensor(u, dtype=torch.float64) for u in (1.0, 0.5, 0.0)]
    x = process.renoise(batch.x0, times[0].expand(64), eps)
    x0 = mapped(process, x, times[0].expand(64), times[2].expand(64))
    for t, s in pairwise(times):
        belief = roles.real_score(x, t.expand(64), batch.cond)
        x = process.alpha(s) * belief.x0 + process.sigma(s) * belief.eps
    snr = (process.alpha(times[0]) / process.sigma(times[0])) ** 2
    assert loss == pytest.approx((max(float(snr), 1.0) * (x0 - x).square().mean()).item(), rel=1e-6)


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


def check_truncated_weight() -> None:
    """At the finest of 8 steps the SNR of a flow is (7 / 1)^2."""
    process, objective = PROCESSES["flow"], Progressive()
    roles = knowing_roles(objective, process, jumping(below(8, 0.0)), grids=[torch.tensor([1 / 8]).double()])
    roles.generator.bias.data.fill_(0.1)
    loss, _ = loss_and_slope(objective, roles, gaussian_batch())
    roles.generator.bias.data.zero_()
    exact, _ = loss_and_slope(objective, roles, gaussian_batch())
    assert loss - exact > 0
    x0_error = (0.1 / 8) ** 2
    assert loss == pytest.approx(49 * x0_error, rel=0.2)


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


TRAINED: dict[str, Objective] = {
    "cd": ConsistencyDistillation(),
    "ct": ConsistencyTraining(),
    "lcm": LatentConsistency(ema=0.0),
    "pcm": PhasedConsistency(gan=NO_GAN),
    "tscd": SegmentedConsistency(ema=0.0),
    "tdd": TargetDriven(gan=NO_GAN),
    "shortcut": Shortcut(ema=0.0),
    "self_shortcut": SelfShortcut(ema=0.0),
    "progressive": Progressive(),
}


def check_target_is_constant(name: str) -> None:
    """The gradient is that of one call of the generator: with its other calls frozen, nothing changes."""
    objective = TRAINED[name]
    roles = toy_roles(PROCESSES["flow"], PLANE, [even_grid(2)], objective=objective, updates=0)
    graphs: list[bool] = []
    roles.generator.register_forward_hook(lambda m, args, out: graphs.append(out.x0.requires_grad))
    with roles.training(("generator",)):
        loss = sum(objective.generator(roles, toy_batch(PLANE, 32, *streams().values())).values())
        loss.backward()
    assert graphs.count(True) == 1
    assert graphs[-1], "the call with gradient comes after its target"
    assert all(p.grad is None for role in ("real_score", "target", "fake_score") for p in roles[role].parameters())
    assert sum(p.grad.norm() for p in roles.parameters("generator") if p.grad is not None) > 0


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
