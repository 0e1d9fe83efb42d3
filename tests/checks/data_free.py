"""Flow maps that are learned from noise alone, against exact ones of Gaussians."""

import pytest
import torch
from closed_forms import OTHER_MEAN, REAL, close, only
from flow_maps import clean_at, exactly, gaussian_batch, knowing_roles, mapped, two_times
from tangents import SIGMA_DATA, trig_row
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.roles import Roles
from fastgen.objectives import Objective
from fastgen.objectives.parts.routes import route_of
from fastgen.objectives.parts.solvers import SOLVERS, Field, Guidance
from fastgen.objectives.trajectory.boot import Bootstrapping
from fastgen.objectives.trajectory.freeflow import FreeFlow, generating_velocity
from fastgen.objectives.trajectory.tbcm import TrajectoryBackward
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture

BIAS = torch.tensor([0.3, -0.2], dtype=torch.float64)
FIRST = [torch.tensor([1.0], dtype=torch.float64)]
SHIFTED = Mixture(OTHER_MEAN[None], REAL.covariances)
TBCM = TrajectoryBackward(route=4, teacher_guidance=Guidance(), sigma_data=SIGMA_DATA, warmup=0, weighting="uniform")
EXACT = {"boot": Bootstrapping(steps=8), "freeflow": FreeFlow(derivative_step=None), "tbcm": TBCM}


def data_free_roles(objective: Objective, process: Process) -> Roles:
    """A generator that knows the exact map, and the exact score as real and as fake one."""
    backward = isinstance(objective, TrajectoryBackward)
    belief, row = (clean_at(0.0), {"row": trig_row}) if backward else (two_times, {})
    roles = knowing_roles(objective, process, belief, grids=FIRST, **row)
    roles.members["fake_score"] = ExactDenoiser(process, REAL)
    return roles


def check_exact_map_is_the_fixed_point(process: Process, name: str) -> None:
    """No loss and no gradient, though nothing is asked but noise."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(SOLVERS, "ddim", exactly(process))
        for seed in range(2):
            batch = gaussian_batch(seed=seed)
            batch.real = None
            loss, slope = loss_and_slope(EXACT[name], data_free_roles(EXACT[name], process), batch)
            assert loss < 1e-9
            assert slope.norm() < 1e-5


def check_signal(process: Process) -> None:
    """The loss of a biased network, from the paper's signal by plain algebra; its ODE where noise has no signal."""
    objective = Bootstrapping(steps=4, space="x0")
    roles = data_free_roles(objective, process)
    roles.generator.bias.data.copy_(BIAS)
    batch = gaussian_batch()
    z = process.prior(batch.script[0], batch.full(1.0))
    loss, _ = loss_and_slope(objective, roles, batch)
    asked, told = roles.generator.told
    s, r, one = asked["s"], told["s"], torch.ones(len(z), dtype=torch.float64)
    close(s - r, torch.full_like(s, 0.25))
    a1, c1, a_s, c_s, a_r, c_r = (f(u)[:, None] for u in (one, s, r) for f in (process.alpha, process.sigma))
    y, said = (roles.generator(z, one, batch.cond, {"s": u}).x0 for u in (s, r))
    x_s = a_s * y + c_s * (z - a1 * y) / c1
    real = ExactDenoiser(process, REAL)(x_s, s, batch.cond)
    x_r = a_r * real.x0 + c_r * real.eps
    aim = (c1 * x_r - c_r * z) / (a_r * c1 - c_r * a1)
    assert loss == pytest.approx((said - aim).square().mean().item(), rel=1e-6)
    if float(a1[0]) == 0:
        inner = s < 1
        ode = y + (1 - c_r * a_s / (a_r * c_s)) * (real.x0 - y)
        close(aim[inner], ode[inner])
        close(aim[~inner], real.x0[~inner])


def check_generating_velocity() -> None:
    """A network wrong by c arrives (t - s) c too low, where the teacher is asked; its derivative is right."""
    roles = data_free_roles(EXACT["freeflow"], Flow())
    roles.generator.bias.data.copy_(BIAS)
    batch = gaussian_batch(size=4)
    t, s = torch.full((4,), 0.9, dtype=torch.float64), torch.tensor([0.0, 0.2, 0.5, 0.8], dtype=torch.float64)
    z, real = batch.noise(), roles.real_score
    aim = generating_velocity(roles, batch, Field(real, batch.cond), z, t, s, {})
    x_s, width = mapped(Flow(), z, t, s), (t - s)[:, None]
    wrong = real(x_s - width * BIAS, s, batch.cond).velocity - real(x_s, s, batch.cond).velocity
    close(aim, (z - x_s) / width + wrong, tolerance=1e-5)
    assert not aim.requires_grad


def check_prediction(power: float) -> None:
    """D / (sg D + c)^power of the mean square D, in its share of the loss; jumps half way."""
    objective = FreeFlow(times=only(0.5), whole=0.0, correction=0.0, power=power, c=0.1, derivative_step=None)
    roles = data_free_roles(objective, Flow())
    roles.generator.bias.data.copy_(BIAS)
    batch = gaussian_batch()
    z, one, half = batch.script[0], batch.full(1.0), batch.full(0.5)
    loss, slope = loss_and_slope(objective, roles, batch)
    x_s = mapped(Flow(), z, one, half)
    velocity = [roles.real_score(x, half, batch.cond).velocity for x in (x_s - BIAS / 2, x_s)]
    error = BIAS - velocity[0] + velocity[1]
    square = error.square().mean(dim=1)
    assert loss == pytest.approx((square / (square + 0.1) ** power).mean().item(), rel=1e-5)
    close(slope, (error / ((square + 0.1) ** power)[:, None]).mean(dim=0), tolerance=1e-5)


def check_correction() -> None:
    """Its share of the velocities' difference, scaled to the prediction's pull: by -t where the velocity is moved."""
    law = {"times": only(0.5), "whole": 0.0, "corrected": only(0.6)}
    objective = FreeFlow(**law, power=0.0, correction=0.25, strength=0.5, derivative_step=None)
    roles = data_free_roles(objective, Flow())
    roles.members["fake_score"] = ExactDenoiser(Flow(), SHIFTED)
    roles.generator.bias.data.copy_(BIAS)
    batch = gaussian_batch()
    z, eps, one = batch.script[1], batch.script[2], batch.full(1.0)
    with roles.training(("generator",)):
        terms = objective.generator(roles, batch)
        (slope,) = torch.autograd.grad(terms["correction"], roles.generator.bias)
    x_t, t = 0.4 * (mapped(Flow(), z, one, 0 * one) - BIAS) + 0.6 * eps, batch.full(0.6)
    gap = roles.real_score(x_t, t, batch.cond).velocity - roles["fake_score"](x_t, t, batch.cond).velocity
    predicted = (4 / 3 * terms["prediction"]).sqrt()  # all errors are alike, those of a bias
    length = gap.square().mean(dim=1).sqrt().mean()
    assert length > 0.1
    assert predicted > 0.01
    close(slope, -0.25 * 0.5 * (2 * predicted.detach() / length * gap).mean(dim=0) / 2, tolerance=1e-4)
    assert (slope @ (OTHER_MEAN - REAL.means[0])) < 0, "samples have to leave the mean of the fake ones"


def check_backward_route(process: Process) -> None:
    """Noise, then the teacher's own DDIM steps to times within the intervals of a shifted route."""
    roles, batch = data_free_roles(TBCM, process), gaussian_batch()
    z, one, field = batch.script[0], batch.full(1.0), Field(roles.real_score, batch.cond)
    states = list(TBCM._states(roles, batch, field))
    edges = route_of(process, 4, shift=2.5)
    x, t = process.prior(z, one), one
    close(states[0][0], x)
    for (found, belief), high, low in zip(states[1:], edges[1:-1], edges[2:], strict=True):
        assert ((low < belief.t) & (belief.t <= high)).all()
        assert belief.t.std() > 0.1 * (high - low)
        real = roles.real_score(x, t, batch.cond)
        alpha, sigma = process.alpha(belief.t)[:, None], process.sigma(belief.t)[:, None]
        x, t = alpha * real.x0 + sigma * real.eps, belief.t
        close(found, x, tolerance=1e-5)
        close(belief.x0, roles.real_score(x, t, batch.cond).x0, tolerance=1e-5)
    flow = [2.5 * u / (1 + 1.5 * u) for u in (0.75, 0.5, 0.25)]
    ratio = process.sigma(edges[1:-1]) / process.alpha(edges[1:-1])
    close(ratio, torch.tensor([u / (1 - u) for u in flow], dtype=torch.float64), tolerance=1e-4)


def check_backward_gradient(process: Process) -> None:
    """Of F = F* + c at every state but the noise: the normalised -cos^2 c of each, alike."""
    objective = TrajectoryBackward(**{**vars(TBCM), "normaliser": 0.05})
    roles = data_free_roles(objective, process)
    roles.generator.bias.data.copy_(BIAS)
    _, slope = loss_and_slope(objective, roles, gaussian_batch())
    again = gaussian_batch()
    states = list(objective._states(roles, again, Field(roles.real_score, again.cond)))[1:]
    t = torch.cat([belief.t for _, belief in states])
    cos = torch.atan2(process.sigma(t), SIGMA_DATA * process.alpha(t)).cos()[:, None]
    pull: Tensor = -(cos**2) * BIAS
    pull = 0.5 * pull / (0.5 * pull.norm(dim=1, keepdim=True) + 0.05)
    close(slope, -pull.mean(dim=0), tolerance=1e-4)
