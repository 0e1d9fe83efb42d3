"""Mean velocities and flow maps on the flow process, against exact ones of Gaussians."""

import pytest
import torch
from closed_forms import close
from flow_maps import gaussian_batch, knowing_roles, mapped, two_times
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.roles import Roles
from fastgen.objectives import Objective
from fastgen.objectives.parts.mean_velocity import two_draws
from fastgen.objectives.trajectory.alphaflow import AlphaFlow
from fastgen.objectives.trajectory.ayf import AlignYourFlow
from fastgen.objectives.trajectory.improved_meanflow import ImprovedMeanFlow
from fastgen.process import Flow, Uniform

C = torch.tensor([0.3, -0.2], dtype=torch.float64)
FLOW = Flow()


def fixture(objective: Objective) -> tuple[Roles, Tensor, Tensor, Tensor, Tensor]:
    """Roles whose generator is wrong by C, and the samples, both times and the exact velocity of the first batch."""
    roles, batch = knowing_roles(objective, FLOW, two_times), gaussian_batch()
    roles.generator.bias.data.copy_(C)
    t, s = two_draws(objective.times, roles, batch)
    x_t = FLOW.renoise(batch.x0, t, batch.script[0])
    return roles, x_t, t, s, roles.real_score(x_t, t, batch.cond).velocity


def mean_of(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(x - X_{t -> s}(x)) / (t - s)."""
    return (x - mapped(FLOW, x, t, s)) / (t - s)[:, None]


def check_map(images: int) -> None:
    """Of F = u + c the tangent is (1 - r) (v - u) - c, shortened; the gradient is minus it by the interval's length."""
    objective = AlignYourFlow(times=Uniform(), warmup=100, normaliser=0.3)
    roles, x_t, t, s, v = fixture(objective)
    batch = gaussian_batch(images=images)
    loss, slope = loss_and_slope(objective, roles, batch)
    g = (1 - min(images / 100, 0.99)) * (v - mean_of(x_t, t, s)) - C
    g = g / (g.norm(dim=1, keepdim=True) + 0.3)
    assert loss == pytest.approx(g.square().mean().item(), rel=1e-4)
    close(slope, -((t - s)[:, None] * g).mean(dim=0), tolerance=1e-4)


def check_curriculum(images: int) -> None:
    """The target of two parts, by hand; a D / (D + c) of the mean square."""
    objective = AlphaFlow(times=Uniform(), diagonal=0.0, end=100, c=0.1)
    roles, x_t, t, s, v = fixture(objective)
    a = objective.alpha(images)
    loss, slope = loss_and_slope(objective, roles, gaussian_batch(images=images))
    d = a * (t - s)
    rest = mean_of(x_t - d[:, None] * v, t - d, s) + C if a < 1 else torch.zeros_like(v)
    aim = (d[:, None] * v + (t - d - s)[:, None] * rest) / (t - s)[:, None] if a else mean_of(x_t, t, s)
    error = mean_of(x_t, t, s) + C - aim
    square = error.square().mean(dim=1)
    assert loss == pytest.approx(((a or 1) * square / (square + 0.1)).mean().item(), rel=1e-4)
    close(slope, ((a or 1) * error / (square + 0.1)[:, None]).mean(dim=0), tolerance=1e-4)


def check_curriculum_ends_in_the_derivative() -> None:
    """(u - target) / a nears u - v + (t - s) du / dt."""
    gaps = []
    for a in (0.02, 0.01):
        objective = AlphaFlow(times=Uniform(), diagonal=0.0)
        roles, x_t, t, s, _ = fixture(objective)
        with pytest.MonkeyPatch.context() as monkeypatch:
            aims = []
            for value in (a, 0.0):
                monkeypatch.setattr(AlphaFlow, "alpha", lambda self, images, value=value: value)
                seen: list[Tensor] = []
                monkeypatch.setattr(AlphaFlow, "_aim", lambda *given, seen=seen: (seen.append(AIM(*given)), seen[0])[1])
                objective.generator(roles, gaussian_batch())
                aims += seen
        u = mean_of(x_t, t, s) + C
        gaps.append(((u - aims[0]) / a - (u - aims[1])).norm().item())
    assert gaps[1] < 0.6 * gaps[0]


AIM = AlphaFlow._aim


def check_improved(diagonal: float) -> None:
    """Of u + c along v + c the error is c + (t - s) J c, and c where s = t; D / (D + 0.1) of the summed square."""
    objective = ImprovedMeanFlow(times=Uniform(), diagonal=diagonal, c=0.1)
    roles, x_t, t, s, _ = fixture(objective)
    loss, slope = loss_and_slope(objective, roles, gaussian_batch())
    moved = (t - s)[:, None] * (mean_of(x_t + C, t, s) - mean_of(x_t, t, s))
    error = C + (0 if diagonal else moved) + 0 * x_t
    square = error.square().sum(dim=1)
    assert loss == pytest.approx((square / (square + 0.1)).mean().item(), rel=1e-4)
    close(slope, (2 * error / (square + 0.1)[:, None]).mean(dim=0), tolerance=1e-4)
