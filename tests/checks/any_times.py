"""Jumps between any two times that an average carries to clean data, against exact maps of Gaussians."""

import pytest
import torch
from average_velocities import C
from closed_forms import REAL, close, only
from flow_maps import exactly, gaussian_batch, knowing_roles, mapped, two_times
from torch import Tensor, nn
from trajectories import loss_and_slope

from fastgen.models.roles import Roles
from fastgen.objectives.parts.flow_map import Interval
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import SOLVERS
from fastgen.objectives.trajectory.ctm import ConsistencyTrajectory
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactDenoiser

NO_GAN, B = GAN(0.0), torch.tensor([-0.1, 0.4], dtype=torch.float64)
JUMPS = ConsistencyTrajectory(denoising=0.0, gan=NO_GAN, ema=0.5)
FLOW = Flow()


class Linear(nn.Module):
    """A discriminator whose logit is the first coordinate; it counts how often a backward pass comes by."""

    passes = 0

    def forward(self, x_t: Tensor, t: Tensor, cond: object) -> Tensor:
        logits = x_t[:, :1]
        logits.register_hook(self._passed)
        return logits

    def _passed(self, _: Tensor) -> None:
        self.passes += 1


def exact_solver(process: Process) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    patch.setitem(SOLVERS, "heun", exactly(process))
    return patch


def check_exact_jumps_are_the_fixed_point(process: Process) -> None:
    """Wherever they lead, clean data too, where an average that is the generator has nothing left to do."""
    patch = exact_solver(process)
    try:
        for seed in range(3):
            loss, slope = loss_and_slope(JUMPS, knowing_roles(JUMPS, process, two_times), gaussian_batch(seed=seed))
            assert loss < 1e-9
            assert slope.norm() < 1e-5
    finally:
        patch.undo()


def biased() -> tuple[Roles, Tensor, Interval]:
    """A generator that is wrong by C and an average by B, and x_t and the times of the first batch."""
    roles = knowing_roles(JUMPS, FLOW, two_times)
    roles.generator.bias.data.copy_(C)
    roles.target.bias.data.copy_(2 * B - C)  # of which `follow` keeps a half
    batch = gaussian_batch()
    interval, _ = JUMPS._interval(roles, batch)
    return roles, FLOW.renoise(batch.x0, interval.t, batch.script[0]), interval


def gap_of(x_t: Tensor, interval: Interval, c: Tensor) -> tuple[Tensor, Tensor]:
    """The clean samples of the jumps from t, where the generator is wrong by c, and their distance to those from u."""

    def carried(x: Tensor, t: Tensor, wrong: Tensor) -> Tensor:
        x_s = mapped(FLOW, x, t, interval.s) - (t - interval.s)[:, None] * wrong
        return mapped(FLOW, x_s, interval.s, 0 * t) - interval.s[:, None] * B

    made, aim = carried(x_t, interval.t, c), carried(mapped(FLOW, x_t, interval.t, interval.r), interval.r, C)
    return made, made - aim


def check_jumps_agree_on_clean_data() -> None:
    """Value and gradient by plain algebra: through the average, which stands still, of the jump from t alone."""
    roles, x_t, interval = biased()
    patch = exact_solver(FLOW)
    try:
        loss, slope = loss_and_slope(JUMPS, roles, gaussian_batch())
    finally:
        patch.undo()
    c = C.clone().requires_grad_()
    expected = gap_of(x_t, interval, c)[1].square().mean()
    (gradient,) = torch.autograd.grad(expected, c)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    close(slope, gradient, tolerance=1e-5)
    close(roles.target.bias.data, B)


def check_balance() -> None:
    """Denoising and adversary pull at clean samples as strongly as the jumps do, times their weights."""
    gan = GAN(weight=3.0, kind="hinge", times=only(0.5))
    objective = ConsistencyTrajectory(denoising=0.7, denoised=only(0.4), noisy=0.0, gan=gan, ema=0.5)
    roles, x_t, interval = biased()
    roles.members["discriminator"] = Linear()
    patch = exact_solver(FLOW)
    try:
        with roles.training(("generator",)):
            terms = objective.generator(roles, gaussian_batch())
            (slope,) = torch.autograd.grad(terms["gan"], roles.generator.bias)
    finally:
        patch.undo()
    made, gap = gap_of(x_t, interval, C)
    batch, pull = gaussian_batch(), gap.norm() / len(gap)
    t = batch.full(0.4)
    noisy = FLOW.renoise(batch.x0, t, batch.script[1])
    error = ExactDenoiser(FLOW, REAL)(noisy, t, batch.cond).x0 - 0.4 * C - batch.x0
    close(terms["denoise"], 0.7 * pull * error.norm() / 2, tolerance=1e-5)
    judged = -(0.5 * made + 0.5 * batch.script[2])[:, 0].mean()
    close(terms["gan"], 3.0 * pull / (0.5 / len(gap) ** 0.5) * judged, tolerance=1e-5)
    c = C.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(-0.5 * gap_of(x_t, interval, c)[0][:, 0].mean(), c)
    close(slope, 3.0 * pull / (0.5 / len(gap) ** 0.5) * wanted, tolerance=1e-5)
    assert roles.members["discriminator"].passes == 1, "a recorded call of a network has one backward pass"


def check_times() -> None:
    """Points of the grid, u as far below t in all rows, s anywhere from there to clean data."""
    objective, seen = ConsistencyTrajectory(grid=6, most=3), set()
    roles = knowing_roles(objective, FLOW, two_times)
    for seed in range(8):
        found, steps = objective._interval(roles, gaussian_batch(seed=seed, size=400))
        index = torch.stack([found.t, found.r, found.s]) * 6
        close(index, index.round())
        close(found.t - found.r, torch.full_like(found.t, steps / 6))
        assert (found.s <= found.r + 1e-9).all()
        assert {round(float(6 * t)) for t in found.t} == set(range(steps, 7))
        assert {round(float(6 * s)) for s in found.s[found.t == 1]} == set(range(7 - steps))
        seen.add(steps)
    assert seen == {1, 2, 3}
