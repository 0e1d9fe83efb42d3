"""The verbs of the consistency family: times, targets, jumps, derivatives, curricula."""

import math

import pytest
import torch
from closed_forms import PLANE, PROCESSES, REAL, close, processes, streams
from flow_maps import check_jumps, clean_at, gaussian_batch, knowing_roles, mapped, times

from fastgen.models.state import LogVariance
from fastgen.objectives import Batch
from fastgen.objectives.parts.curricula import Doubling, Even, Ramp, Ratio, Root, apart, ramp
from fastgen.objectives.parts.distances import DISTANCES, adaptive
from fastgen.objectives.parts.flow_map import Interval, cells, divided, follow, jumps, origin, same_masks, segment_end
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.process import Discrete, Flow, LogNormal, Process, even_grid
from fastgen.proofs.analytic import ExactDenoiser
from fastgen.proofs.toy import toy_batch, toy_roles

VP = PROCESSES["vp"]
EDGES = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0], dtype=torch.float64)


# Times


@processes
def test_training_ends_where_the_clock_shows_zero(process: Process):
    """Step 0 of a discrete process is t = 1 / N, not clean data."""
    assert origin(process) == (1 / 1000 if isinstance(process, Discrete) else 0)


def test_steps_are_divided_merged_and_kept():
    edges = times(1.0, 0.9, 0.75, 0.5, 0.0)
    close(divided(edges, 4), edges)
    close(divided(edges, 2), times(1.0, 0.75, 0.0))
    close(divided(edges, 1), times(1.0, 0.0))
    close(divided(edges, 8), times(1.0, 0.95, 0.9, 0.825, 0.75, 0.625, 0.5, 0.25, 0.0))
    for count in (4, 8, 20, 52):
        assert set(edges.tolist()) <= set(divided(edges, count).tolist()), "the student's times stay exact"
    assert len(cells(edges, 50)) == 53
    assert len(cells(EDGES, 100)) == 101


def test_segments_end_at_the_next_time_below():
    r = times(0.99, 0.75, 0.74, 0.2, 0.001)
    close(segment_end(EDGES, r, Flow()), times(0.75, 0.75, 0.5, 0.0, 0.0))
    close(segment_end(EDGES, r, VP), times(0.75, 0.75, 0.5, 0.001, 0.001))


def test_the_grid_of_latent_consistency_is_that_of_the_paper():
    """Steps 19, 39, ... 999, and the last of them is followed by step 0."""
    grid = cells(times(1.0, 0.0), 50)
    steps = VP.clock(grid[:-1])
    close(steps, torch.arange(999, 0, -20, dtype=torch.float64))
    scaled = 10 * torch.tensor([19.0, 999.0], dtype=torch.float64)
    skip = 0.25 / (scaled**2 + 0.25)
    close(skip, times(6.925e-6, 2.505e-9), tolerance=1e-9)


# Targets


def test_the_target_follows_the_generator():
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], objective=LatentConsistency(), updates=0)
    assert "w" in roles.generator.scalars
    assert "w" in roles.target.scalars
    before = [p.clone() for p in roles.parameters("target")]
    live = [p.clone() for p in roles.parameters("generator")]
    with torch.no_grad():
        for p in roles.parameters("generator"):
            p.add_(1.0)
    batch = toy_batch(PLANE, 4, *streams().values())
    follow(roles, batch, 0.9)
    for mean, old, now in zip(roles.parameters("target"), before, live, strict=True):
        close(mean, 0.9 * old + 0.1 * (now + 1))
    follow(roles, batch, 0.0)
    batch.part = 1
    follow(roles, batch, 0.9)
    close(roles.parameters("target")[0], 0.9 * before[0] + 0.1 * (live[0] + 1))


def test_a_target_without_weights_of_its_own_is_refused():
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    roles.members["target"] = ExactDenoiser(Flow(), PLANE)
    with pytest.raises(ValueError, match="give it its own copy"):
        follow(roles, toy_batch(PLANE, 4, *streams().values()), 0.9)


def test_both_calls_of_a_pair_share_their_dropout():
    with same_masks(torch.zeros(1)):
        first = torch.nn.functional.dropout(torch.ones(64))
    assert torch.equal(torch.nn.functional.dropout(torch.ones(64)), first)
    assert not torch.equal(torch.nn.functional.dropout(torch.ones(64)), first)


# Jumps


@processes
def test_jumps_from_one_trajectory_agree(process: Process):
    check_jumps(process)


@processes
def test_a_jump_that_has_arrived_is_the_sample_itself(process: Process):
    """f(x, t, t) = x for any network."""
    roles = toy_roles(process, PLANE, [even_grid(1)], updates=0)
    x_t, t = torch.randn(8, 2), torch.linspace(0.1, 1.0, 8, dtype=torch.float64)
    close(roles.generator(x_t, t, PLANE.uncond(8)).at(t), x_t, tolerance=2e-5)


def test_at_the_origin_the_target_is_the_sample():
    roles = knowing_roles(LatentConsistency(), VP, clean_at(0.0))
    batch = gaussian_batch(size=2)
    t, r = times(0.02, 0.04), times(0.001, 0.02)
    x_t, x_r = torch.randn(2, 2, 2, dtype=torch.float64)
    found = jumps(roles, batch, Interval(t, r, batch.full(0.0)), x_t, x_r, ema=0.0)
    assert torch.equal(found.target[0], x_r[0])
    close(found.target[1], mapped(VP, x_r, r, times(0.0, 0.0))[1])


# Curricula


def drawn(curriculum: object, process: Process, *, images: int = 0, size: int = 4000) -> object:
    batch = Batch(REAL.uncond(size), (2,), **streams(), images=images)
    return curriculum.neighbours(process, times(1.0, 0.0), batch)


@pytest.mark.parametrize(("k", "points"), [(0, 2), (1, 16), (50, 107), (100, 151)])
def test_consistency_training_refines_its_grid(k: int, points: int):
    curriculum = Root(first=2, last=150, decay=0.9, images=100)
    assert curriculum.points(k) == points
    assert curriculum.ema(k) == pytest.approx(math.exp(2 * math.log(0.9) / points))
    near = drawn(curriculum, PROCESSES["edm"], images=k)
    close((near.t - near.r).unique(), times(1 / (points - 1)).expand(len((near.t - near.r).unique())), tolerance=2e-6)


def test_the_decay_of_consistency_training():
    curriculum = Root(images=100)
    assert curriculum.ema(0) == pytest.approx(0.9)
    assert curriculum.ema(100) == pytest.approx(0.998605, abs=1e-6)


@pytest.mark.parametrize(("k", "points"), [(0, 11), (125, 21), (500, 161), (875, 1281), (1000, 1281)])
def test_improved_training_doubles_its_grid(k: int, points: int):
    assert Doubling(images=1000).points(k) == points


@processes
def test_the_ramp_is_karras_between_the_ends_of_the_process(process: Process):
    grid, vp = ramp(process, times(1.0, 0.0), 17), isinstance(process, Discrete)
    level = process.sigma(grid) / process.alpha(grid)
    smallest = math.sqrt(1 / process.alphas_cumprod[0].item() - 1) if vp else 0.002
    largest = min(level[0].item(), 80.0)
    ends = [largest ** (1 / 7), smallest ** (1 / 7)]
    expected = times(*((ends[0] + i / 17 * (ends[1] - ends[0])) ** 7 for i in range(18)))
    close(level[1:-1], expected[1:-1])
    assert grid[0] == 1
    assert grid[-1] == 0


def test_the_students_other_times_are_on_the_ramp_too():
    grid = ramp(Flow(), EDGES, 17)
    assert len(grid) == 18 + 3
    assert all((grid == edge).any() for edge in EDGES)
    close(ramp(Flow(), times(1.0, grid[2].item(), 0.0), 17), ramp(Flow(), times(1.0, 0.0), 17))


def test_improved_training_looks_where_the_log_normal_does():
    process = PROCESSES["edm"]
    curriculum = Doubling(images=1000)
    near = drawn(curriculum, process, images=500, size=20_000)
    normal = torch.distributions.Normal(-1.1, 2.0)
    for level in (0.1, 1.0, 5.0):
        share = (process.sigma(near.t) <= level).double().mean().item()
        assert share == pytest.approx(normal.cdf(torch.tensor(math.log(level))).item(), abs=0.05)
    close(near.weight, 1 / (process.sigma(near.t) - process.sigma(near.r)))


ECT = {0: [0, 0.02319, 0.47323, 0.5], 1: [0, 0.51159, 0.73661, 0.75]}
ECT |= {2: [0.49746, 0.75580, 0.86831, 0.875], 3: [0.74873, 0.87790, 0.93415, 0.9375]}


@pytest.mark.parametrize("stage", ECT)
def test_easy_consistency_tuning_closes_in(stage: int):
    found = Ratio(images=10).ratio(times(0.5, 2, 5, 50), 10 * stage + 3)
    close(found, times(*ECT[stage]), tolerance=1e-5)


@processes
def test_the_ratio_is_one_of_noise_levels(process: Process):
    """sigma_r alpha_t / (alpha_r sigma_t) is the ratio, whatever the process."""
    near = drawn(Ratio(times=LogNormal(0.5, 0.5)), process)
    high, low = (process.sigma(u) / process.alpha(u) for u in (near.t, near.r))
    clean = process.sigma(origin(process)[None]) / process.alpha(origin(process)[None])
    expected = torch.maximum(high * Ratio().ratio(high, 0), clean)
    close(low, expected, tolerance=1e-5)
    close(near.weight, 1 / (high - low))
    assert (near.r < near.t).all()


@processes
@pytest.mark.parametrize("curriculum", [Doubling(images=8), Ratio()])
def test_neighbours_are_weighed_by_noise_level_and_also_without_signal(process: Process, curriculum: object):
    """The first cell of a flow begins at pure noise: as far from its end as 80 is."""
    near = drawn(curriculum, process, images=3)
    high, low = (process.sigma(u) / process.alpha(u) for u in (near.t, near.r))
    close(1 / near.weight, torch.where(high.isfinite(), high, 80.0) - low)
    last = apart(process, times(1.0), times(0.999))
    assert last.isfinite().all()
    assert (last > 0).all()


@processes
@pytest.mark.parametrize(
    "curriculum", [Even(18), Ramp(18), Root(images=1), Doubling(images=8), Ratio(), Ratio(q=256.0)]
)
def test_neighbours_are_in_order_and_weights_finite(process: Process, curriculum: object):
    near = drawn(curriculum, process, images=3)
    assert (near.r < near.t).all()
    assert (near.r >= origin(process)).all()
    assert near.weight.isfinite().all()


# Distances


def test_distances_by_hand():
    d = times(3.0, -4.0)[None]
    close(DISTANCES["l2"](d, 0.0), times(12.5))
    close(DISTANCES["l1"](d, 0.0), times(3.5))
    close(DISTANCES["huber"](d, 0.5), times((math.sqrt(9.25) + math.sqrt(16.25)) / 2 - 0.5))
    close(DISTANCES["pseudo_huber"](d, 0.5), times(math.sqrt(12.75) - 0.5))
    paper = math.sqrt(25 + (0.00054 * math.sqrt(2)) ** 2) - 0.00054 * math.sqrt(2)
    close(DISTANCES["pseudo_huber"](d, 0.00054) * math.sqrt(2), times(paper))
    close(adaptive(d, power=0.5, c=0.1), times(25 / math.sqrt(25.1)))


def test_the_adaptive_weight_is_a_constant():
    d = times(3.0, -4.0)[None].requires_grad_()
    (slope,) = torch.autograd.grad(adaptive(d, power=1.0, c=0.1).sum(), d)
    close(slope, 2 * d.detach() / 25.1)


def test_the_log_variance_starts_at_zero_and_learns_of_time():
    state = LogVariance()
    assert torch.equal(state(times(0.1, 0.9)), torch.zeros(2))
    (0.5 * (state(times(0.1, 0.9)) - torch.tensor([1.0, -1.0])).square().sum()).backward()
    assert state.out.weight.grad.norm() > 0
