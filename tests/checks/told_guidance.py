"""Guidance that the student is told, and adversaries of jumps, by hand."""

import math
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from adversaries import Judge
from closed_forms import COVARIANCE, PLANE, believed, close, only
from flow_maps import clean_at, gaussian_batch, knowing_roles, two_times
from solver_orders import TwoGaussians
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives import Batch, Objective
from fastgen.objectives.parts.adversarial import discriminator_loss, generator_loss
from fastgen.objectives.parts.flow_map import Jumps
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.regression.guidance_distillation import GuidanceDistillation
from fastgen.objectives.trajectory.consistency import ConsistencyDistillation
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.mdt_dist import MarginalDataTransport
from fastgen.objectives.trajectory.meanflow import MeanFlow
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.pdd import ParallelDecoding
from fastgen.objectives.trajectory.progressive import Progressive
from fastgen.objectives.trajectory.scm import SimplifiedConsistency
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tdd import TargetDriven
from fastgen.objectives.trajectory.tscd import SegmentedConsistency
from fastgen.process import ROWS, Flow, Prediction, Process, Uniform


def guided_roles(objective: Objective, process: Process) -> Roles:
    roles = knowing_roles(objective, process, clean_at(0.0))
    roles.members["real_score"] = TwoGaussians(process)
    return roles


def classed(size: int = 64) -> Batch:
    batch = gaussian_batch(size=size)
    batch.cond = PLANE.cond(torch.zeros(size, dtype=torch.long))
    return batch


def guided_belief(process: Process, x: Tensor, t: Tensor, scalars: Mapping[str, Tensor]) -> Prediction:
    """What is true of N(m_w, S) at the told w."""
    w = 20 * scalars["w"][:, None]
    mean = (1 - w) * torch.tensor([-0.5, 0.4]) + w * torch.tensor([1.0, 0.0])
    return Prediction.of_x0(process, x, t, at_mean(process, mean, x, t))


NOISED, PASSED = GuidanceDistillation(times=only(0.6)), GuidanceDistillation(route=4)


def check_guidance_distillation(process: Process, objective: GuidanceDistillation = NOISED) -> None:
    """The generator that knows the belief of N(m_w, S) at the told w has no loss; the conditional one has."""

    roles = guided_roles(objective, process)
    roles.generator.belief = guided_belief
    assert objective.generator(roles, classed())["guided"].item() < 1e-10
    told = torch.cat([scalars["w"] for scalars in roles.generator.told])
    assert 0.05 <= told.min() < 0.08
    assert 0.22 < told.max() <= 0.25
    roles.generator.belief = lambda process, x, t, scalars: roles.real_score(x, t, classed(len(x)).cond)
    assert objective.generator(roles, classed())["guided"].item() > 1e-3


def check_slope(objective: GuidanceDistillation) -> None:
    """The gradient is that of the mean square, in the objective's row, at every row that is learned."""
    roles, (bias, batch) = guided_roles(objective, Flow()), (torch.tensor([0.3, -0.2]).double(), classed())
    roles.generator.row = ROWS[objective.space]
    roles.generator.belief = guided_belief
    roles.generator.bias.data.copy_(bias)
    with roles.training(("generator",)):
        loss = objective.generator(roles, batch)["guided"]
        assert loss.requires_grad, "the loss does not reach the generator"
        (slope,) = torch.autograd.grad(loss, roles.generator.bias)
    close(slope, bias, tolerance=1e-4)


def at_mean(process: Process, mean: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """E[x0 | x_t] of N(mean, COVARIANCE) row by row, at times of their own."""
    rows = zip(x - process.alpha(t)[:, None] * mean, process.alpha(t), process.sigma(t), strict=True)
    zero = torch.zeros(2).double()
    return mean + torch.cat([believed(zero, COVARIANCE, row[None], alpha, sigma) for row, alpha, sigma in rows])


def check_guided_route(process: Process) -> None:
    """From noise on each sample is led under its own w, by DDIM's step, to a time in each quarter of the way."""
    roles, batch, seen = guided_roles(PASSED, process), classed(size=16), []
    roles.generator.register_forward_pre_hook(lambda module, given: seen.extend(given))
    noise, batch.real = batch.script[0], None
    PASSED.generator(roles, batch)
    (x_t, t, cond, _), w = seen, 20 * roles.generator.told[0]["w"].view(4, 16)
    assert cond.size == 64
    assert torch.equal(w, w[:1].expand(4, 16))
    mean = torch.tensor([-0.5, 0.4]) + w[0][:, None] * torch.tensor([1.5, -0.4])
    states, times = x_t.view(4, 16, 2), t.view(4, 16)
    close(states[0], process.prior(noise, times[0]))
    assert (times.diff(dim=0) < 0).all()
    for here, following, at, to in zip(states, states[1:], times, times[1:], strict=False):
        x0 = at_mean(process, mean, here, at)
        eps = (here - process.alpha(at)[:, None] * x0) / process.sigma(at)[:, None]
        close(following, process.alpha(to)[:, None] * x0 + process.sigma(to)[:, None] * eps, tolerance=1e-5)


LEARNERS: dict[str, Objective] = {
    "cd": ConsistencyDistillation(),
    "lcm": LatentConsistency(ema=0.0),
    "pcm": PhasedConsistency(gan=GAN(0.0)),
    "tscd": SegmentedConsistency(ema=0.0),
    "tdd": TargetDriven(dropout=0.0, gan=GAN(0.0)),
    "progressive": Progressive(),
    "shortcut": Shortcut(ema=0.0),
    "self_shortcut": SelfShortcut(ema=0.0),
    "scm": SimplifiedConsistency(times=Uniform(0.2, 0.8)),
    "meanflow": MeanFlow(),
    "mdt_dist": MarginalDataTransport(),
    "pdd": ParallelDecoding(heads=4),
}


class Shifted(TwoGaussians):
    """The unguided denoiser of N(m_3, S), m_3 = m_null + 3 (m_c - m_null)."""

    def mean(self, labels: Tensor) -> Tensor:
        return torch.tensor([[4.0, -0.8]], dtype=torch.float64).expand(len(labels), 2)


def check_guided_teacher(name: str) -> None:
    """Under w = 3 the teacher is that of the shifted distribution."""

    def loss(w: float, teacher: type[TwoGaussians]) -> float:
        objective = replace(LEARNERS[name], teacher_guidance=Guidance(w, w))
        roles = knowing_roles(
            objective, Flow(), two_times if "s" in objective.needs.scalars_of("generator") else clean_at(0.0)
        )
        roles.members["real_score"] = teacher(Flow())
        return sum(objective.generator(roles, classed()).values()).item()

    assert loss(3.0, TwoGaussians) == pytest.approx(loss(1.0, Shifted), rel=1e-9)
    assert loss(3.0, TwoGaussians) != pytest.approx(loss(1.0, TwoGaussians), rel=1e-3)


def check_adversarial_consistency() -> None:
    """Both sides are carried from s by the forward process with noises of their own; hinge losses by hand."""
    gan = GAN(0.1, learned=1.0, kind="hinge", times=only(1.0))
    roles = knowing_roles(PhasedConsistency(), Flow(), clean_at(0.0))
    judge = roles.members["discriminator"] = Judge()
    judge.weight.data.copy_(torch.tensor([1.0, 0.5]))
    batch = gaussian_batch()
    noises = list(batch.script)
    generated, target = torch.randn(2, 64, 2, dtype=torch.float64)
    ends = Jumps(generated, target, batch.full(0.25))
    until = batch.full(0.5)
    scale, std = 0.5 / 0.75, math.sqrt(0.25 - (0.5 / 0.75 * 0.25) ** 2)

    def logits(x: Tensor, eps: Tensor) -> Tensor:
        return (scale * x + std * eps) @ torch.tensor([1.0, 0.5]).double()

    paid = (1 - logits(generated, noises[0])).clamp(min=0)
    assert (paid == 0).any(), "some are beyond the margin"
    close(generator_loss(gan, roles, batch, ends, until=until), paid.mean())
    expected = (1 - logits(target, noises[1])).clamp(min=0).mean() + (1 + logits(generated, noises[2])).clamp(
        min=0
    ).mean()
    close(discriminator_loss(gan, roles, batch, ends, until=until)["gan"], expected)
