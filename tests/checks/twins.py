"""A flow map that is its own fake score at negative times, against exact ones of Gaussians."""

from collections.abc import Mapping
from itertools import pairwise

import pytest
import torch
from average_velocities import C, mean_of
from closed_forms import OTHER_MEAN, REAL, close, only
from flow_maps import Belief, gaussian_batch, knowing_roles, mapped, two_times
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.roles import Roles
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory.twinflow import JumpTimes, TwinFlow
from fastgen.process import Flow, Prediction, Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture

FLOW = Flow()
SHIFTED = Mixture(OTHER_MEAN[None], REAL.covariances)
MAP = TwinFlow(teacher_guidance=Guidance(), step=0.05, bound=0.4, c=0.1, matching=0.0)


def twin(own: Mixture) -> Belief:
    """The exact flow map, and told a negative time the exact denoiser of other samples."""

    def belief(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
        s = scalars["s"]
        fake = ExactDenoiser(process, own)(x, t, REAL.uncond(len(t)))
        return two_times(process, x, t, {"s": s.clamp(min=0)}).lerp(fake, (s < 0).double())

    return belief


def twin_roles(objective: TwinFlow, *, bias: Tensor = C) -> Roles:
    roles = knowing_roles(objective, FLOW, twin(SHIFTED))
    roles.generator.bias.data.copy_(bias)
    return roles


def beginnings(jump: JumpTimes) -> Tensor:
    """Its own one-step samples of the first noise, too low by C, under the second; whole jumps begin at the latter."""
    z, eps = gaussian_batch().script[:2]
    t, one = jump.t[:, None], torch.ones_like(jump.t)
    made = mapped(FLOW, z, one, 0 * one) - C
    return torch.where(jump.whole[:, None], eps, (1 - t) * made + t * eps)


def check_map() -> None:
    """All rows of a batch by plain algebra, of a network that is wrong by C: value and gradient of the loss."""
    roles = twin_roles(MAP)
    jump = MAP._jump(roles, gaussian_batch())
    (z, eps), x_t = gaussian_batch().script[:2], beginnings(jump)
    batch = gaussian_batch()
    batch.real = None
    loss, slope = loss_and_slope(MAP, roles, batch)
    one, t, s = torch.ones_like(jump.t), jump.t, jump.s
    velocity = ExactDenoiser(FLOW, REAL)(x_t, t, batch.cond).velocity
    width = (t - s)[:, None]
    u = torch.where(width > 0, mean_of(x_t, t, s), velocity) + C
    end = torch.maximum(t - 0.05, s)
    x = x_t - (t - end)[:, None] * velocity
    for a, b in pairwise((end, (end + s) / 2, s)):
        x = torch.where(width >= 0.05, mapped(FLOW, x, a, b) - (a - b)[:, None] * C, x)
    excess = torch.where(width < 0.05, u - velocity, (width * u - x_t + x) / 0.05)
    error = excess.clamp(-0.4, 0.4)
    own = ExactDenoiser(FLOW, SHIFTED)(x_t, t, batch.cond).velocity + C
    fake, made = jump.fake[:, None], mapped(FLOW, z, one, 0 * one) - C
    error = torch.where(fake, own - (eps - made), error)
    weight = torch.where(jump.fake, one, 1 + torch.tan(0.4 * torch.pi * (1 - t + s)))
    root = (error.square().mean(dim=1) + 0.01).sqrt()
    assert min(jump.whole.sum(), jump.fake.sum(), (width[:, 0] < 0.05).sum(), (excess.abs() > 0.4).sum()) > 4
    assert loss == pytest.approx((2 * weight * (root - 0.1)).mean().item(), rel=1e-6)
    close(slope, (weight / root)[:, None].mul(error).mean(dim=0), tolerance=1e-5)


def check_exact_map_nearly_rests() -> None:
    """Its excess is of the order of the teacher's step; of shorter jumps, which follow the teacher, nothing."""
    batch, found = gaussian_batch(), []
    t = torch.tensor([1.0, 0.8, 0.5, 0.5], dtype=torch.float64).repeat(16)
    s = torch.tensor([0.0, 0.3, 0.1, 0.4999999], dtype=torch.float64).repeat(16)
    still = torch.zeros_like(t).bool()
    x_t = FLOW.renoise(batch.x0, t, batch.noise())
    velocity = ExactDenoiser(FLOW, REAL)(x_t, t, batch.cond).velocity
    for step in (0.02, 0.01):
        objective = TwinFlow(teacher_guidance=Guidance(), step=step)
        roles = twin_roles(objective, bias=0 * C)
        jump = JumpTimes(t, s, still, still)
        excess = objective._excess(roles, batch, x_t, jump, mean_of(x_t, t, s), velocity, {})
        found.append(excess.norm(dim=1))
        assert excess.abs().max() < 4 * step
        assert excess[s > 0.49].abs().max() < 1e-5
    long = s < 0.4
    assert (found[1][long] < 0.6 * found[0][long]).all()


def check_matching() -> None:
    """Whole jumps are moved by the difference of the scores of their samples, and these towards the data."""
    objective = TwinFlow(teacher_guidance=Guidance(), matching=0.5, compared=only(0.6), bound=0.3, c=0.1)
    roles, batch = twin_roles(objective), gaussian_batch()
    jump = objective._jump(roles, gaussian_batch())
    with roles.training(("generator",)):
        terms = objective.generator(roles, batch)
        (slope,) = torch.autograd.grad(terms["matching"], roles.generator.bias)
    (eps, noise), one, t = gaussian_batch().script[1:3], torch.ones_like(jump.t), batch.full(0.6)
    x = 0.4 * (mapped(FLOW, eps, one, 0 * one) - C) + 0.6 * noise
    real, own = (ExactDenoiser(FLOW, of)(x, t, batch.cond).velocity for of in (REAL, SHIFTED))
    gap = (own - real).clamp(-0.3, 0.3)
    assert ((own - real).abs() > 0.3).any()
    pull = gap / (gap.square().mean(dim=1, keepdim=True) + 0.01).sqrt()
    close(slope, 0.5 * 4 * (jump.whole[:, None] * pull).mean(dim=0), tolerance=1e-5)
    assert (slope @ (OTHER_MEAN - REAL.means[0])) < 0, "x0 = x - t u has to leave the mean of its own samples"


def check_only_scores_of_its_own_are_told_negative_times() -> None:
    """In the sampling and in the rest of jumps no time is below zero; in the fake score's rows it is -t."""
    objective = TwinFlow(teacher_guidance=Guidance(), compared=only(0.6))
    roles, jump = twin_roles(objective), objective._jump(twin_roles(objective), gaussian_batch())
    objective.generator(roles, gaussian_batch())
    sampled, jumped, *rest, real, fake = (told["s"] for told in roles.generator.told)
    assert not sampled.any()
    close(jumped, torch.where(jump.fake, -jump.t, jump.s))
    assert len(rest) == 2
    assert all((s >= 0).all() for s in rest)
    close(real, 0.6 + 0 * real)
    close(fake, -real)
