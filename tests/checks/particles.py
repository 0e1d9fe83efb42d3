"""Groups of particles whose jumps agree in law, against closed forms of Gaussians."""

import math

import pytest
import torch
from average_velocities import C
from closed_forms import close
from flow_maps import gaussian_batch, joined, knowing_roles, mapped, two_times
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.calls import NONE
from fastgen.objectives.parts.flow_map import Interval
from fastgen.objectives.parts.moments import laplace_discrepancy
from fastgen.objectives.parts.velocity import Trajectory
from fastgen.objectives.trajectory import imm
from fastgen.objectives.trajectory.imm import InductiveMomentMatching
from fastgen.process import Flow, Process

FLOW = Flow()


def mean_kernel(mean: Tensor, variance: float, rate: float) -> Tensor:
    """E exp(-rate |z|) of a normal z, whose halves are completed to squares."""
    deviation, normal = math.sqrt(variance), torch.distributions.Normal(0.0, 1.0)
    tails = [
        (sign * rate * mean).exp() * normal.cdf((-sign * mean - rate * variance) / deviation) for sign in (1.0, -1.0)
    ]
    return math.exp(rate**2 * variance / 2) * (tails[0] + tails[1])


def check_discrepancy() -> None:
    """Value and slope between two normal laws, known by even quantiles; elements that are all alike count D times."""
    mean, moved, spread, rate = torch.tensor(0.3), torch.tensor(-0.4).double().requires_grad_(), 0.6, 1.7
    between = 1 + spread**2
    zero = torch.zeros((), dtype=torch.float64)
    expected = mean_kernel(zero, 2.0, rate) + mean_kernel(zero, 2 * spread**2, rate)
    expected = expected - 2 * mean_kernel(moved - mean.double(), between, rate)
    (wanted,) = torch.autograd.grad(expected, moved)
    even = torch.special.ndtri((torch.arange(600, dtype=torch.float64) + 0.5) / 600)
    x, y = moved + spread * even, mean.double() + even
    copies = [z[None, :, None].expand(2, -1, 4) for z in (x, y)]  # |a - b| / D is half of a single element's
    found = laplace_discrepancy(*copies, torch.tensor([2 * rate, 4 * rate]).double())
    (slope,) = torch.autograd.grad(found[0], moved, retain_graph=True)
    close(found[0], expected, tolerance=3e-3)
    close(slope, wanted, tolerance=3e-3)
    assert (found[1] - found[0]).abs() > 1e-2, "each group has its own kernel"


def expected_loss(objective: InductiveMomentMatching, interval: Interval, made: Tensor, aim: Tensor) -> Tensor:
    """Eq. 67 on the flow, pair by pair."""
    losses = []
    for first in range(0, len(made), objective.group):
        t, s = interval.t[first], interval.s[first]
        rows = range(first, first + objective.group)
        power = (t**2 + (1 - t) ** 2).sqrt()

        def k(a: Tensor, b: Tensor, *, scale: Tensor = (t - s) / power) -> Tensor:
            apart = (a - b).square().sum()
            return (-(apart.sqrt() if apart > 0 else 0 * apart) / scale / 2).exp()

        pairs = [(i, j) for i in rows for j in rows]
        moments = sum(k(made[i], made[j]) + k(aim[i], aim[j]) - 2 * k(made[i], aim[j]) for i, j in pairs) / len(pairs)
        odds = (t / (1 - t)) ** 2 * math.exp(objective.b)  # of the sigmoid
        losses.append(odds / (1 + odds) / (t * (1 - t)) * (1 - t) ** objective.a / power**2 * moments)
    return torch.stack(losses).mean()


def check_jumps_of_groups(group: int = 4, a: float = 1.0) -> None:
    """Value and gradient by plain algebra: x_r of the data and of x_t's noise, its jump a constant."""
    objective = InductiveMomentMatching(group=group, a=a, dropout=0.0, k=10, b=2.0)
    roles = knowing_roles(objective, FLOW, two_times)
    wrong = C * torch.linspace(0.5, 1.5, 16, dtype=torch.float64)[:, None]  # each row by an amount of its own
    roles.generator.bias = torch.nn.Parameter(wrong)
    found = objective.interval(FLOW, gaussian_batch(size=16))
    batch = gaussian_batch(size=16)
    loss, slope = loss_and_slope(objective, roles, gaussian_batch(size=16))
    x_t, x_r = (FLOW.renoise(batch.x0, t, batch.script[0]) for t in (found.t, found.r))
    aim = torch.where((found.r <= found.s)[:, None], x_r, mapped(FLOW, x_r, found.r, found.s))
    aim = aim - (found.r - found.s)[:, None] * wrong
    c = wrong.clone().requires_grad_()
    made = mapped(FLOW, x_t, found.t, found.s) - (found.t - found.s)[:, None] * c
    expected = expected_loss(objective, found, made, aim)
    (wanted,) = torch.autograd.grad(expected, c)
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    close(slope, wanted, tolerance=1e-5)


def check_exact_jumps_are_the_fixed_point(process: Process) -> None:
    """Where x_r lies on x_t's own trajectory, single pairs agree."""
    objective = InductiveMomentMatching(velocity="real_score", dropout=0.0, k=4)
    patch = pytest.MonkeyPatch()
    for seed in range(3):
        found = objective.interval(process, gaussian_batch(seed=seed))

        def exact(settings: object, roles: object, batch: object, start: object, r: Tensor = found.r) -> Trajectory:
            x_r = mapped(process, start.x_t, start.t, r)
            return Trajectory(joined(process, start.x_t, start.t, x_r, r), NONE)

        patch.setattr(imm, "trajectory_of", exact)
        loss, slope = loss_and_slope(objective, knowing_roles(objective, process, two_times), gaussian_batch(seed=seed))
        patch.undo()
        assert abs(loss) < 1e-9
        assert slope.norm() < 1e-5


def check_exact_jumps_agree_in_law() -> None:
    """Of data's x_r, whose pairs do not agree: many particles leave the exact jumps where they are."""
    objective = InductiveMomentMatching(group=512, dropout=0.0, k=4)

    def slope_at(bias: Tensor) -> Tensor:
        slopes = []
        for seed in range(6):
            roles = knowing_roles(objective, FLOW, two_times)
            roles.generator.bias.data.copy_(bias)
            slopes.append(loss_and_slope(objective, roles, gaussian_batch(seed=seed, size=512))[1])
        return torch.stack(slopes).mean(dim=0)

    wrong = slope_at(C)
    assert wrong @ C > 0, "it leads back"
    assert slope_at(0 * C).norm() < 0.1 * wrong.norm()


def check_times() -> None:
    """A group has one t, r and s; r a constant noise level below t, or s; levels above `highest` count as it."""
    objective = InductiveMomentMatching(group=4, k=6, sigma_data=0.5, dropout=0.0)
    found = objective.interval(FLOW, gaussian_batch(size=4000))
    for times in (found.t, found.r, found.s):
        close(times, times[::4].repeat_interleave(4))
    t, r, s = (times[::4] for times in (found.t, found.r, found.s))
    noise, below = (u / (1 - u) / 0.5 for u in (t, r))
    constant = (r > s) & (noise < 160)
    assert constant.double().mean() > 0.2
    close((noise - below)[constant], torch.full_like(t, 2.5)[constant])
    close(r[~constant & (r == s)], s[~constant & (r == s)])
    assert (s <= r).all()
    assert (r < t).all()
    assert s.div(t).mean().item() == pytest.approx(0.5, abs=0.03)
    one = torch.ones(1, dtype=torch.float64)
    close(objective.below(FLOW, one), one * 78.75 / 79.75)
    close(InductiveMomentMatching(gap=0.2).below(FLOW, one), one * 0.8)
    close(objective.below(FLOW, 0.1 * one), 0 * one)


def check_weight(process: Process) -> None:
    """For each span of log-SNR that of the flow, whatever the process's own times."""
    noise, h = torch.tensor([0.05, 0.4, 2.0, 9.0]).double(), 1e-5
    t = process.time_of(-2 * noise.log())
    fall = (process.logsnr(t - h) - process.logsnr(t + h)) / (2 * h)
    found = imm.weight_of(process, t, a=1.0, b=2.0, sigma_data=0.5) / fall
    odds, u = 4 * noise**2 * math.exp(2.0), 2 * noise / (1 + 2 * noise)
    close(found, odds / (1 + odds) / 2 * (1 - u) / (u**2 + (1 - u) ** 2), tolerance=1e-4)
