"""Heads of parallel decoding, against exact flow maps of Gaussians and against teachers that take every step."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from closed_forms import COVARIANCE, MEAN, close
from flow_maps import Belief, gaussian_batch, knowing_roles, mapped
from torch import Tensor

from fastgen.models.head_bank import Intervals
from fastgen.models.roles import Roles
from fastgen.objectives.parts.flow_map import intervals_of
from fastgen.objectives.trajectory.pdd import ParallelDecoding
from fastgen.process import ROWS, Flow, Prediction, Process, even_grid

DIFFERENCE = ROWS["difference"]
BIAS = torch.tensor([0.3, -0.2], dtype=torch.float64)


def norm(process: Process, t: Tensor) -> Tensor:
    """alpha + sigma, [B, 1]: x_t over it moves by the velocity eps - x0 in the time of `share`."""
    return (process.alpha(t) + process.sigma(t))[:, None]


def share(process: Process, t: Tensor) -> Tensor:
    return process.sigma(t)[:, None] / norm(process, t)


def saying(process: Process, x: Tensor, t: Tensor, velocity: Tensor) -> Prediction:
    """The prediction at (x, t) with that eps - x0."""
    x0 = (x - process.sigma(t)[:, None] * velocity) / norm(process, t)
    return Prediction(process, t, x0, x0 + velocity)


def velocity(process: Process, x: Tensor, t: Tensor) -> Tensor:
    """eps - x0 of the exact teacher, by plain linear algebra, row by row."""
    alpha, sigma = process.alpha(t)[:, None, None], process.sigma(t)[:, None, None]
    noisy = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2, dtype=torch.float64)
    offset = (x - alpha[..., 0] * MEAN)[..., None]
    x0 = MEAN + (alpha * (COVARIANCE @ torch.linalg.solve(noisy, offset)))[..., 0]
    return (x - (alpha + sigma)[..., 0] * x0) / sigma[..., 0]


def exact(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
    """Heads that say the mean velocity of the exact trajectory from r to s."""
    r, s = scalars["r"], scalars["s"]
    s = torch.where(s < r, s, r / 2)  # nobody moves by a run that is empty
    ends = [mapped(process, x, t, u) / norm(process, u) for u in (r, s)]
    return saying(process, x, t, (ends[1] - ends[0]) / (share(process, s) - share(process, r)))


def taking_every_step(edges: Tensor) -> Belief:
    """Heads that say the teacher's own velocities on its Euler steps along the edges."""

    def belief(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
        r, s = scalars["r"], scalars["s"]
        y, moved, width = x / norm(process, t), torch.zeros_like(x), torch.zeros_like(x[:, :1])
        for a, b in pairwise(edges):
            a, b = a.expand(len(t)), b.expand(len(t))
            step = share(process, b) - share(process, a)
            here, within = (a <= t + 1e-9)[:, None], ((a <= r + 1e-9) & (a > s + 1e-9))[:, None]
            slope = torch.where(here, velocity(process, y * norm(process, a), a), 0.0)
            y, moved, width = y + step * slope, moved + within * step * slope, width + within * step
        return saying(process, x, t, moved / torch.where(width == 0, 1.0, width))

    return belief


def decoding_roles(objective: ParallelDecoding, process: Process, belief: Belief, *counts: int) -> Roles:
    grids = [even_grid(n) for n in counts]
    return knowing_roles(objective, process, belief, grids=grids, row=DIFFERENCE)


def check_loss_by_hand(process: Process, target: str) -> None:
    """Of heads that are wrong by a constant, of one and of two steps: loss and gradient, from the noise on."""
    begun: set[float] = set()
    for seed in range(3):
        objective = ParallelDecoding(heads=8, target=target)
        roles = decoding_roles(objective, process, exact, 1, 2)
        roles.generator.bias.data.copy_(BIAS)
        batch = gaussian_batch(seed=seed)
        eps = batch.script[0]
        with roles.training(("generator",)):
            loss = objective.generator(roles, batch)["velocity"]
            assert loss.requires_grad, "the loss does not reach the generator"
            (slope,) = torch.autograd.grad(loss, roles.generator.bias)
        prefix, last = roles.generator.told[-2:]
        t_n, t_k, t_next = prefix["r"], last["r"], last["s"]
        begin = float(t_n[0])
        begun.add(begin)
        assert (t_n == begin).all()
        close(prefix["s"], t_k)
        close(t_k - t_next, torch.full_like(t_k, 1 / 8))

        def moved(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
            """By the biased heads."""
            return mapped(process, x, t, s) + norm(process, s) * (share(process, s) - share(process, t)) * BIAS

        one = torch.ones_like(t_n)
        x_n = moved(process.prior(eps, one), one, t_n)
        x_k = moved(x_n, t_n, t_k)
        aim = velocity(process, x_k, t_k)
        if target == "midpoint":
            middle = (t_k + t_next) / 2
            y = x_k / norm(process, t_k) + (share(process, middle) - share(process, t_k)) * aim
            aim = velocity(process, y * norm(process, middle), middle)
        wrong = exact(process, x_n, t_n, last).output(DIFFERENCE) + BIAS - aim
        assert loss.item() == pytest.approx(wrong.square().mean().item(), rel=1e-6)
        close(slope, wrong.mean(dim=0))
    assert begun == {1.0, 0.5}


def check_every_interval_of_a_block_is_learned(process: Process) -> None:
    """Of a student of one and of four steps: all, or those between two stops."""
    objective = ParallelDecoding(heads=8)
    blocks: set[tuple[int, ...]] = set()
    for seed in range(8):
        roles = decoding_roles(objective, process, exact, 1, 4)
        objective.generator(roles, gaussian_batch(seed=seed, size=256))
        *walked, prefix, last = roles.generator.told
        depth = round(4 * (1 - float(prefix["r"][0])))
        assert len(walked) == depth
        found = tuple(sorted({round(8 * (1 - t)) for t in last["r"].tolist()}))
        assert found in {(2 * depth, 2 * depth + 1), *[tuple(range(8))] * (depth == 0)}
        blocks.add(found)
    assert tuple(range(8)) in blocks
    assert len(blocks) > 2


def check_teacher_of_every_step_is_the_fixed_point(process: Process) -> None:
    for counts, seeds in (((1,), 1), ((1, 2, 4), 3)):
        objective = ParallelDecoding(heads=8)
        grids = [even_grid(n) for n in counts]
        roles = decoding_roles(objective, process, taking_every_step(intervals_of(grids, process, 8).edges), *counts)
        for seed in range(seeds):
            assert objective.generator(roles, gaussian_batch(seed=seed))["velocity"].item() < 1e-18
        roles.generator.bias.data.copy_(BIAS)
        assert objective.generator(roles, gaussian_batch())["velocity"].item() > 1e-3


def check_order(target: str, order: int) -> None:
    """The error of the targets, of exact heads, falls at least so fast with the number of intervals, on a flow."""
    process, losses = Flow(), []
    for heads in (16, 32):
        objective = ParallelDecoding(heads=heads, target=target)
        roles = decoding_roles(objective, process, exact, 1)
        losses.append(objective.generator(roles, gaussian_batch(size=4096))["velocity"].item())
    assert losses[0] / losses[1] > 0.9 * 4**order


def check_prefix_sums(process: Process, model: object, x: Tensor, cond: object, intervals: Intervals) -> None:
    """A fused block ends where its intervals lead one after the other."""
    edges = intervals.edges
    for begin, end in ((0, len(edges) - 1), (1, 3)):
        t, u = (edges[i].expand(len(x)) for i in (begin, end))
        y = x.double() / norm(process, t)
        for a, b in pairwise(edges[begin : end + 1]):
            a, b = a.expand(len(x)), b.expand(len(x))
            said = model(x, t, cond, {"r": a, "s": b}).output(DIFFERENCE)
            y = y + (share(process, b) - share(process, a)) * said
        close(model(x, t, cond, {"r": t, "s": u}).at(u).double(), y * norm(process, u), tolerance=1e-4)
