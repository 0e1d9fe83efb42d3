"""sCM, SANA-Sprint and MeanFlow against closed forms."""

import math
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from closed_forms import REAL, close, only, processes
from flow_maps import Knowing, clean_at, gaussian_batch, knowing_roles, two_times
from tangents import (
    SIGMA_DATA,
    check_mean_flow_loss,
    check_mean_velocity,
    check_sprint,
    check_tangent,
    check_tangent_gradient,
    trig_row,
)
from torch import Tensor

from fastgen.models.calls import NONE
from fastgen.models.roles import Roles
from fastgen.models.state import LogVariance
from fastgen.models.walk import Plan
from fastgen.objectives import Needs, Objective
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.mean_velocity import two_draws, with_diagonal
from fastgen.objectives.parts.ops import Noised
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.parts.velocity import Trajectory
from fastgen.objectives.trajectory import meanflow, scm
from fastgen.objectives.trajectory.meanflow import MeanFlow
from fastgen.objectives.trajectory.sana_sprint import SanaSprint
from fastgen.objectives.trajectory.scm import Angle, SimplifiedConsistency, pulled, tangent, trig_output
from fastgen.process import EDM, Flow, Prediction, Process, even_grid
from fastgen.process.prediction import Coefficients
from fastgen.proofs.analytic import ExactDenoiser


def linear(process: Process, sigma_data: float, slope: float) -> Knowing:
    """F = slope x / sd + bias in TrigFlow's terms, whatever unit the samples have."""

    def row(process: Process, t: Tensor) -> Coefficients:
        angle = Angle.of(process, t, sigma_data)
        return Coefficients(-angle.sin / sigma_data, angle.cos)

    def belief(process: Process, x: Tensor, t: Tensor, scalars: object) -> Prediction:
        angle = Angle.of(process, t, sigma_data)
        scaled = x * (angle.cos / (sigma_data * process.alpha(t)))[:, None]
        return Prediction.solve(process, x, t, slope * scaled, row=row)

    return Knowing(process, belief, row=row)


# TrigFlow


@pytest.mark.parametrize(
    ("u", "t", "norm"), [(0.3, 0.236254, 0.799452), (1.0, 0.608979, 0.723708), (1.5, 0.933781, 0.936126)]
)
def test_a_flow_network_is_read_as_a_trigonometric_one(u: float, t: float, norm: float):
    """F = ((1 - 2 t) x + (1 - 2 t + 2 t^2) v) / norm and x_Trig = x / norm (SANA-Sprint, arXiv:2503.09641, eq. 7)."""
    process, time = Flow(), torch.tensor([math.sin(u) / (math.sin(u) + math.cos(u))], dtype=torch.float64)
    assert time.item() == pytest.approx(t, abs=1e-6)
    x, v = torch.randn(2, 1, 3, dtype=torch.float64)
    belief = Prediction(process, time, x - time * v, x + (1 - time) * v)
    t, norm = time.item(), math.hypot(time.item(), 1 - time.item())
    angle = Angle.of(process, time, 1.0)
    close(trig_output(belief, angle, 1.0), ((1 - 2 * t) * x + (1 - 2 * t + 2 * t * t) * v) / norm)
    assert torch.atan2(angle.sin, angle.cos).item() == pytest.approx(u)
    assert x.div(norm).sub(angle.cos * belief.x0 + angle.sin * belief.eps).norm() < 1e-12


@processes
def test_the_angle_turns_at_its_rate(process: Process):
    t, h = torch.tensor([0.35], dtype=torch.float64), 1e-5
    angle, near, far = (Angle.of(process, t + d, SIGMA_DATA) for d in (0, -h, h))
    turned = torch.atan2(far.sin, far.cos) - torch.atan2(near.sin, near.cos)
    close(turned / (process.clock(t + h) - process.clock(t - h)), angle.rate, tolerance=1e-4)


# sCM


@processes
@pytest.mark.parametrize("t", [0.3, 0.6])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_the_tangent_of_a_biased_consistency_model(process: Process, t: float, warmup: float):
    check_tangent(process, t, warmup=warmup)


@pytest.mark.parametrize("images", [0, 50, 200])
def test_the_tangent_is_normalised_warmed_up_and_weighted(images: int):
    check_tangent_gradient(images)


def test_uniform_weights_train_no_weight():
    """The gradient is minus the normalised tangent at every time, and the role `weight` is not there."""
    process, t = Flow(), 0.6
    objective = SimplifiedConsistency(sigma_data=SIGMA_DATA, times=only(t), warmup=0, weighting="uniform")
    assert objective.cycle == (("generator",),)
    assert not objective.needs.log_variance
    roles = knowing_roles(objective, process, clean_at(0.0), row=trig_row)
    roles.generator.bias.data.copy_(torch.tensor([0.3, -0.7]))
    batch = gaussian_batch()
    start = Noised.of(process, batch.x0, batch.full(t), batch.script[0])
    real = roles.real_score(start.x_t, start.t, batch.cond)
    _, g = tangent(roles, batch, start, Trajectory(real, NONE), sigma_data=SIGMA_DATA, warmup=1.0)
    normalised = g / (g.norm(dim=1, keepdim=True) + 2 * objective.normaliser)
    with roles.training(("generator",)):
        (slope,) = torch.autograd.grad(objective.generator(roles, batch)["tangent"], roles.generator.bias)
    close(slope, -normalised.mean(dim=0), tolerance=1e-5)


@pytest.mark.parametrize("norm", ["sample", "element"])
def test_the_unit_of_the_samples_changes_nothing(norm: str):
    """Samples, noise levels and sigma_data ten times as large: the same angles, the same gradient by F."""
    slopes = []
    for unit in (1.0, 10.0):
        process = EDM(sigma_min=0.002 * unit, sigma_max=80 * unit)
        objective = SimplifiedConsistency(sigma_data=0.5 * unit, times=only(0.4), warmup=0, norm=norm)
        members = {"generator": linear(process, 0.5 * unit, 0.3), "real_score": linear(process, 0.5 * unit, -0.2)}
        roles = Roles(members | {"log_variance": LogVariance()}, Plan([even_grid(1)]))
        roles.generator.bias.data.copy_(torch.tensor([-0.7, 0.2]))
        batch = gaussian_batch()
        batch.real = batch.real * unit
        with roles.training(("generator", "log_variance")):
            slopes += torch.autograd.grad(objective.generator(roles, batch)["tangent"], roles.generator.bias)
    close(*slopes)


@pytest.mark.parametrize(("norm", "length"), [("sample", 1.0), ("element", math.sqrt(48))])
def test_the_length_of_the_pull(norm: str, length: float):
    """Of a long tangent 1 over the whole sample, or per element; of one of the paper's 0.1, half of that."""
    g = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    g = g / g.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    close(pulled(1e9 * g, c=0.1, norm=norm).flatten(1).norm(dim=1), torch.full((5,), length).double())
    per_element = 1.0 if norm == "sample" else math.sqrt(48)
    half = pulled(2 * 0.1 * per_element * g, c=0.1, norm=norm)
    close(half.flatten(1).norm(dim=1), torch.full((5,), length / 2).double())


def test_data_velocities_average_to_the_teachers():
    """Over x0 given x_t: the mean of eps x0-wise is that of the exact denoiser (sCT and sCD agree)."""
    process, count = Flow(), 200_000
    t = torch.full((count,), 0.5, dtype=torch.float64)
    batch = gaussian_batch(size=count)
    start = Noised.of(process, batch.x0, t, batch.noise())
    real = ExactDenoiser(process, REAL)(start.x_t, t, batch.cond)
    gap = start.truth.velocity - real.velocity
    for moment in (torch.ones_like(gap), start.x_t, start.x_t.flip(1)):
        assert (gap * moment).mean(dim=0).abs().max() < 0.02


@pytest.mark.parametrize(
    ("module", "objective", "exact"),
    [
        (meanflow, MeanFlow(derivative_step=0.2), two_times),
        (scm, SimplifiedConsistency(derivative_step=0.2), clean_at(0.0)),
    ],
)
def test_the_step_reaches_the_derivative(
    module: ModuleType, objective: Objective, exact: Callable, monkeypatch: pytest.MonkeyPatch
):
    seen, along = [], module.along
    monkeypatch.setattr(module, "along", lambda *given, step, **named: seen.append(step) or along(*given, **named))
    objective.generator(knowing_roles(objective, Flow(), exact), gaussian_batch())
    assert seen == [0.2]


# SANA-Sprint


def test_sprint_is_a_consistency_model_with_an_adversary():
    check_sprint()


def test_sprint_without_adversary_is_refused():
    with pytest.raises(ValueError, match="choose objective scm"):
        SanaSprint(gan=GAN(0.0))


# MeanFlow


def test_the_mean_velocity_is_its_own_target():
    check_mean_velocity()


def test_mean_flow_pulls_a_biased_network_back():
    check_mean_flow_loss()


def test_data_velocities_ask_no_teacher():
    objective = MeanFlow(velocity="data", diagonal=1.0, times=only(0.5))
    roles = knowing_roles(objective, Flow(), two_times)
    exact = roles.members.pop("real_score")
    batch = gaussian_batch()
    eps, t = batch.script[0], batch.full(0.5)
    square = (exact((batch.x0 + eps) / 2, t, batch.cond).velocity - (eps - batch.x0)).square().sum(dim=1)
    expected = (square / (square + 0.01)).mean()
    close(objective.generator(roles, batch)["mean_velocity"], expected, tolerance=1e-5)


def test_the_share_of_the_diagonal():
    objective, batch = MeanFlow(), gaussian_batch(size=4000)
    roles = knowing_roles(objective, Flow(), two_times)
    t, s = with_diagonal(*two_draws(objective.times, roles, batch), 0.75, batch)
    assert (t == s).double().mean().item() == pytest.approx(0.75, abs=0.03)
    assert (t >= s).all()


def test_mean_flow_says_that_it_is_linear():
    own = Needs(images=True, process="flow", sampler="ode", scalars={"generator": {"s"}}, fine_times=True)
    assert MeanFlow().needs == own | Needs(real_score=True)
    assert MeanFlow(velocity="data").needs == own
    assert not MeanFlow(derivative_step=0.03).needs.fine_times
    with pytest.raises(ValueError, match="velocity=real_score"):
        MeanFlow(velocity="data", teacher_guidance=Guidance(2.0, 2.0))
