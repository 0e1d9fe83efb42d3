"""Tangents, mean velocities and the objectives of continuous time, against closed forms."""

import pytest
import torch
from adversaries import Judge
from closed_forms import close, only
from flow_maps import clean_at, gaussian_batch, knowing_roles, mapped, two_times
from torch import Tensor

from fastgen.models.calls import NONE
from fastgen.objectives import Batch
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.mean_velocity import Chord
from fastgen.objectives.parts.ops import Noised
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.parts.velocity import Trajectory
from fastgen.objectives.trajectory.meanflow import MeanFlow, mean_velocity
from fastgen.objectives.trajectory.sana_sprint import SanaSprint
from fastgen.objectives.trajectory.scm import SimplifiedConsistency, tangent
from fastgen.process import Flow, Process
from fastgen.process.prediction import Coefficients

SIGMA_DATA = 0.8


def trig_row(process: Process, t: Tensor) -> Coefficients:
    """F of TrigFlow on any process."""
    u = torch.atan2(process.sigma(t), SIGMA_DATA * process.alpha(t))
    return Coefficients(-u.sin() / SIGMA_DATA, u.cos())


def started(process: Process, t: float, batch: Batch) -> Noised:
    return Noised.of(process, batch.x0, batch.full(t), batch.noise())


def check_tangent(process: Process, t: float, *, warmup: float) -> None:
    """For F = F* + c the tangent is -cos^2 c at full warm-up; without, -cos^2 (F - F_real)."""
    objective = SimplifiedConsistency(sigma_data=SIGMA_DATA)
    roles = knowing_roles(objective, process, clean_at(0.0), row=trig_row)
    c = torch.tensor([0.3, -0.7], dtype=torch.float64)
    roles.generator.bias.data.copy_(c)
    batch = gaussian_batch(size=8)
    start = started(process, t, batch)
    real = roles.real_score(start.x_t, start.t, batch.cond)
    value, g = tangent(roles, batch, start, Trajectory(real, NONE), sigma_data=SIGMA_DATA, warmup=warmup)
    alpha, sigma = process.alpha(start.t)[:, None], process.sigma(start.t)[:, None]
    u = torch.atan2(sigma, SIGMA_DATA * alpha)
    x0 = mapped(process, start.x_t, start.t, 0 * start.t)
    exact = -u.sin() * x0 / SIGMA_DATA + u.cos() * (start.x_t - alpha * x0) / sigma
    close(value, exact + c, tolerance=1e-5)
    teacher = -u.sin() * real.x0 / SIGMA_DATA + u.cos() * real.eps
    expected = -(u.cos() ** 2) * (c if warmup else exact + c - teacher)
    close(g, expected.expand_as(g), tolerance=1e-5)


def check_tangent_gradient(images: int) -> None:
    """2 / d times the weight 2 / tan(u) times minus the normalised tangent; half way through the warm-up."""
    process, t = Flow(), 0.6
    objective = SimplifiedConsistency(sigma_data=SIGMA_DATA, times=only(t), warmup=100)
    roles = knowing_roles(objective, process, clean_at(0.0), row=trig_row)
    roles.generator.bias.data.copy_(torch.tensor([0.3, -0.7]))
    batch = gaussian_batch(images=images)
    start = Noised.of(process, batch.x0, batch.full(t), batch.script[0])
    real = roles.real_score(start.x_t, start.t, batch.cond)
    _, g = tangent(roles, batch, start, Trajectory(real, NONE), sigma_data=SIGMA_DATA, warmup=min(images / 100, 1.0))
    normalised = g / (g.norm(dim=1, keepdim=True) + 2 * objective.normaliser)
    with roles.training(("generator", "log_variance")):
        loss = objective.generator(roles, batch)["tangent"]
        slope, lv = torch.autograd.grad(loss, [roles.generator.bias, roles["log_variance"].out.bias], allow_unused=True)
    assert slope is not None, "the loss does not reach the generator"
    weight = 2 * SIGMA_DATA * (1 - t) / t
    close(slope, -weight * normalised.mean(dim=0), tolerance=1e-5)
    squared = weight * normalised.square().mean()
    assert loss.item() == pytest.approx(squared.item(), rel=1e-5)
    assert lv.item() == pytest.approx(1 - squared.item(), rel=1e-4), "W e^-lv delta^2 + lv has its minimum at W delta^2"


def check_sprint() -> None:
    """Its first term is sCM's, its second lowers minus the mean logit of renoised samples called at the first time."""
    shared = {
        "sigma_data": SIGMA_DATA,
        "times": only(0.6),
        "teacher_guidance": Guidance(),
        "warmup": 100,
        "normaliser": 0.05,
    }
    gan = GAN(0.5, learned=0.5, kind="hinge", times=only(0.4), paired=True)
    sprint = SanaSprint(**shared, gan=gan, first=1.0)
    roles = knowing_roles(sprint, Flow(), clean_at(0.0), row=trig_row, grids=[torch.tensor([0.9]).double()])
    roles.members["discriminator"] = Judge()
    roles["discriminator"].weight.data.copy_(torch.tensor([2.0, -1.0]))
    batch = gaussian_batch(images=50)
    noises = [batch.script[i] for i in range(4)]
    terms = sprint.generator(roles, batch)
    t = torch.full((64,), 0.9, dtype=torch.float64)
    x0 = mapped(Flow(), 0.1 * batch.x0 + 0.9 * noises[0], t, 0 * t)
    expected = -0.5 * ((0.6 * x0 + 0.4 * noises[1]) @ torch.tensor([2.0, -1.0]).double()).mean()
    close(terms["gan"], expected)
    alone = SimplifiedConsistency(**shared)
    again = gaussian_batch(images=50)
    again.script = [noises[2]]
    close(terms["tangent"], alone.generator(roles, again)["tangent"])


def check_mean_velocity() -> None:
    """A network wrong by a constant still has the exact target: (x_t - X_{t -> s}) / (t - s)."""
    objective = MeanFlow()
    roles = knowing_roles(objective, Flow(), two_times)
    roles.generator.bias.data.copy_(torch.tensor([0.3, -0.7]))
    batch = gaussian_batch(size=4)
    t = torch.tensor([0.9, 0.8, 0.5, 0.4], dtype=torch.float64)
    s = torch.tensor([0.1, 0.7, 0.0, 0.3], dtype=torch.float64)
    x_t = Flow().renoise(batch.x0, t, batch.noise())
    v = roles.real_score(x_t, t, batch.cond).velocity
    aim = mean_velocity(roles, batch, Chord(x_t, t, s, v, {"s": s}))
    close(aim, (x_t - mapped(Flow(), x_t, t, s)) / (t - s)[:, None])
    assert not aim.requires_grad


def check_mean_flow_loss() -> None:
    """Loss and gradient of a network wrong by c: D / (D + 0.01) with D = |c|^2, also where s = t."""
    c = torch.tensor([0.3, -0.4], dtype=torch.float64)
    for diagonal in (0.0, 1.0):
        objective = MeanFlow(diagonal=diagonal)
        roles = knowing_roles(objective, Flow(), two_times)
        roles.generator.bias.data.copy_(c)
        with roles.training(("generator",)):
            loss = objective.generator(roles, gaussian_batch())["mean_velocity"]
            (slope,) = torch.autograd.grad(loss, roles.generator.bias)
        assert loss.item() == pytest.approx(0.25 / 0.26, rel=1e-5)
        close(slope, 2 * c / 0.26, tolerance=1e-5)
