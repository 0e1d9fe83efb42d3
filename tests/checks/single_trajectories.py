"""Jumps along one trajectory, and an adversary that sees less noise in what is real, by plain algebra."""

from dataclasses import replace
from itertools import pairwise
from unittest import mock

import pytest
import torch
from average_velocities import C
from closed_forms import ScriptedBatch, close
from flow_maps import clean_at, exactly, gaussian_batch, knowing_roles, mapped
from torch import Tensor, nn
from trajectories import loss_and_slope

from fastgen.models.roles import Roles
from fastgen.objectives.parts.flow_map import Interval
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import SOLVERS, Guidance
from fastgen.objectives.trajectory import std
from fastgen.objectives.trajectory.std import SingleTrajectory
from fastgen.process import Flow, even_grid

FLOW = Flow()
PLAIN = SingleTrajectory(teacher_guidance=Guidance(), strength=0.75, grid=12, distance="l2", gan=GAN(0.0))
JUDGED = SingleTrajectory(
    teacher_guidance=Guidance(), grid=12, distance="l2", gan=GAN(0.7, learned=0.4, kind="hinge", pixels=True)
)


class Seen(nn.Module):
    """A discriminator whose logit is a sample's first coordinate; it remembers what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x_t: Tensor, t: Tensor, cond: object) -> Tensor:
        self.calls.append((x_t, t))
        return x_t[:, :1]


def biased(objective: SingleTrajectory) -> Roles:
    """A generator that knows the clean end of exact trajectories, wrong by C, on a grid of two steps."""
    roles = knowing_roles(objective, FLOW, clean_at(0.0), grids=[even_grid(2)])
    roles.generator.bias.data.copy_(C)
    return roles


def drawn(objective: SingleTrajectory, batch: ScriptedBatch) -> tuple[Interval, Tensor, Tensor]:
    """The times of a batch and its two neighbouring states."""
    with mock.patch.object(std, "jumps", side_effect=std.jumps) as called:
        objective.jumps(biased(objective), batch)
    (_, _, interval, x_t, x_r), _ = called.call_args
    return interval, x_t, x_r


def exact_solver() -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setitem(SOLVERS, "ddim", exactly(FLOW))
    return patch


def jumped(x: Tensor, t: Tensor, s: Tensor, c: Tensor) -> Tensor:
    """Where a jump of the biased generator ends: its x0 is wrong by -t c and its noise by (1 - t) c."""
    t, s = t[:, None], s[:, None]
    x0 = mapped(FLOW, x, t[:, 0], 0 * t[:, 0])
    eps = (x - (1 - t) * x0) / t
    return (1 - s) * (x0 - t * c) + s * (eps + (1 - t) * c)


def check_states() -> None:
    """On the teacher's way from images at the strength, all rows as far; s anywhere within its reach."""
    patch, depths = exact_solver(), set()
    try:
        for seed in range(0, 60000, 4001):
            interval, x_t, x_r = drawn(PLAIN, gaussian_batch(seed=seed, size=200))
            batch = gaussian_batch(seed=seed, size=200)
            start = batch.full(0.75)
            begun = FLOW.renoise(batch.x0, start, batch.script[0])
            close(x_t, mapped(FLOW, begun, start, interval.t))
            close(x_r, mapped(FLOW, begun, start, interval.r))
            t = 12 * interval.t[0].item()
            assert t == pytest.approx(round(t))
            close(interval.t, batch.full(round(t) / 12))
            close(interval.r, batch.full((round(t) - 1) / 12))
            stops = {round(12 * float(s)) for s in interval.s}
            assert stops == set(range(max(0, round(t) - 5), round(t)))
            depths.add(round(t))
    finally:
        patch.undo()
    assert min(depths) <= 2
    assert max(depths) >= 8
    assert max(depths) <= 9


def check_substeps() -> None:
    """The teacher comes to both states, from the noise and from the first of them, by three steps in each interval."""
    objective, depths = replace(PLAIN, substeps=3), set()
    for seed in range(0, 60000, 4001):
        batch, roles = gaussian_batch(seed=seed, size=20), biased(objective)
        interval, x_t, x_r = drawn(objective, gaussian_batch(seed=seed, size=20))
        stops = torch.linspace(0.75, float(interval.r[0]), 1 + 3 * round(12 * (0.75 - float(interval.r[0]))))
        times = [batch.full(float(stop)) for stop in stops]
        ways = [FLOW.renoise(batch.x0, times[0], batch.script[0])]
        for t, r in pairwise(times):
            ways.append(roles.real_score(ways[-1], t, batch.cond).at(r))
        close(x_t, ways[-4], tolerance=1e-5)
        close(x_r, ways[-1], tolerance=1e-5)
        depths.add(len(ways))
    assert min(depths) <= 7
    assert max(depths) >= 19


def check_jumps_agree() -> None:
    """Value and gradient of the jump from t, against that from r, which stands still."""
    patch = exact_solver()
    try:
        for seed in range(3):
            interval, x_t, x_r = drawn(PLAIN, gaussian_batch(seed=seed))
            loss, slope = loss_and_slope(PLAIN, biased(PLAIN), gaussian_batch(seed=seed))
            aim = jumped(x_r, interval.r.clamp(min=1e-9), interval.s, C)
            aim = torch.where((interval.r <= interval.s)[:, None], x_r, aim)
            c = C.clone().requires_grad_()
            expected = (jumped(x_t, interval.t, interval.s, c) - aim).square().mean()
            (wanted,) = torch.autograd.grad(expected, c)
            assert loss == pytest.approx(expected.item(), rel=1e-6)
            close(slope, wanted, tolerance=1e-5)
    finally:
        patch.undo()


def check_adversary() -> None:
    """It sees x_s as it is, and real samples at less noise than that: from none to s, evenly."""
    interval, x_t, _ = drawn(JUDGED, gaussian_batch(seed=3))
    made, roles = jumped(x_t, interval.t, interval.s, C), biased(JUDGED)
    roles.members["discriminator"] = seen = Seen()
    with roles.training(("generator",)):
        terms = JUDGED.generator(roles, gaussian_batch(seed=3))
        (slope,) = torch.autograd.grad(terms["gan"], roles.generator.bias)
    ((judged, time),) = seen.calls
    close(judged, made)
    close(time, 0 * time)
    close(terms["gan"], -0.7 * made[:, 0].mean())
    c = C.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(-0.7 * jumped(x_t, interval.t, interval.s, c)[:, 0].mean(), c)
    close(slope, wanted, tolerance=1e-5)
    seen.calls.clear()
    batch = gaussian_batch(seed=3)
    loss = JUDGED.discriminator(roles, batch)["gan"]
    ((both, time),) = seen.calls
    real, fake = both.chunk(2)
    close(fake, made)
    close(time, 0 * time)
    close(loss, 0.4 * ((1 - real[:, 0]).relu().mean() + (1 + made[:, 0]).relu().mean()))
    way = gaussian_batch(seed=3).script[1] - batch.x0  # from each clean sample to its noise
    share = ((real - batch.x0) * way).sum(dim=1) / way.square().sum(dim=1)
    close(real, batch.x0 + share[:, None] * way)
    assert (share <= interval.s + 1e-9).all()
    inner = interval.s > 0
    assert (share[inner] / interval.s[inner]).mean().item() == pytest.approx(0.5, abs=0.12)
