"""Guidance that the student is told, and adversaries of jumps, by hand."""

import math
from dataclasses import replace

import pytest
import torch
from closed_forms import COVARIANCE, PLANE, believed, close, only, processes, streams
from flow_maps import clean_at, gaussian_batch, knowing_roles, two_times
from test_gan import Judge
from test_solvers import TwoGaussians
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives import Batch, Needs, Objective
from fastgen.objectives.parts.adversarial import discriminator_loss, generator_loss
from fastgen.objectives.parts.flow_map import Jumps
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.regression.guidance_distillation import GuidanceDistillation
from fastgen.objectives.trajectory.consistency import ConsistencyDistillation
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.meanflow import MeanFlow
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.objectives.trajectory.progressive import Progressive
from fastgen.objectives.trajectory.scm import SimplifiedConsistency
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut
from fastgen.objectives.trajectory.shortcut import Shortcut
from fastgen.objectives.trajectory.tdd import TargetDriven
from fastgen.objectives.trajectory.tscd import SegmentedConsistency
from fastgen.process import Flow, Prediction, Process, Uniform, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

# Guidance that is told


def guided_roles(objective: Objective, process: Process) -> Roles:
    roles = knowing_roles(objective, process, clean_at(0.0))
    roles.members["real_score"] = TwoGaussians(process)
    return roles


def classed(size: int = 64) -> Batch:
    batch = gaussian_batch(size=size)
    batch.cond = PLANE.cond(torch.zeros(size, dtype=torch.long))
    return batch


def check_guidance_distillation(process: Process) -> None:
    """The generator that knows the belief of N(m_w, S) at the told w has no loss; the conditional one has."""

    def belief(process: Process, x: Tensor, t: Tensor, scalars: dict[str, Tensor]) -> Prediction:
        w = 20 * scalars["w"][:, None]
        mean = (1 - w) * torch.tensor([-0.5, 0.4]) + w * torch.tensor([1.0, 0.0])
        alpha, sigma = process.alpha(t)[0], process.sigma(t)[0]
        x0 = mean + believed(torch.zeros(2).double(), COVARIANCE, x - alpha * mean, alpha, sigma)
        return Prediction.of_x0(process, x, t, x0)

    objective = GuidanceDistillation(times=only(0.6))
    roles = guided_roles(objective, process)
    roles.generator.belief = belief
    assert objective.generator(roles, classed())["guided"].item() < 1e-10
    told = torch.cat([scalars["w"] for scalars in roles.generator.told])
    assert 0.05 <= told.min() < 0.08
    assert 0.22 < told.max() <= 0.25
    roles.generator.belief = lambda process, x, t, scalars: roles.real_score(x, t, classed().cond)
    assert objective.generator(roles, classed())["guided"].item() > 1e-3


@processes
def test_guidance_distillation_learns_the_guided_belief(process: Process):
    check_guidance_distillation(process)


@pytest.mark.parametrize("ema", [0.0, 0.95])
def test_latent_consistency_tells_both_networks_the_teachers_scale(ema: float):
    objective = LatentConsistency(ema=ema)
    roles = guided_roles(objective, Flow())
    objective.generator(roles, classed())
    told = [scalars["w"] for name in ("generator", "target") for scalars in roles[name].told]
    assert len(told) == 2
    assert torch.equal(told[0], told[1])
    assert told[0].min() >= 0.3
    assert told[0].max() <= 0.8
    assert objective.needs.null
    assert objective.needs.scalars_of("generator") == ("w",)
    assert objective.needs.scalars_of("target") == (("w",) if ema else ())


def test_a_range_of_scales_has_to_be_told():
    fixed = GuidanceDistillation(teacher_guidance=Guidance(3.0, 3.0))
    assert fixed.needs == Needs(images=True, real_score=True, null=True)
    with pytest.raises(ValueError, match=r"guidance.told=true"):
        GuidanceDistillation(teacher_guidance=Guidance(1.0, 3.0))


def test_untold_guidance_tells_nothing():
    objective = LatentConsistency(teacher_guidance=Guidance(6.0, 16.0))
    roles = guided_roles(objective, Flow())
    objective.generator(roles, classed())
    assert [dict(scalars) for scalars in roles.generator.told] == [{}]


# Guidance of the teacher

LEARNERS: dict[str, Objective] = {
    "cd": ConsistencyDistillation(),
    "lcm": LatentConsistency(ema=0.0),
    "pcm": PhasedConsistency(gan=GAN(0.0, kind="hinge")),
    "tscd": SegmentedConsistency(ema=0.0),
    "tdd": TargetDriven(dropout=0.0, gan=GAN(0.0, kind="hinge")),
    "progressive": Progressive(),
    "shortcut": Shortcut(ema=0.0),
    "self_shortcut": SelfShortcut(ema=0.0),
    "scm": SimplifiedConsistency(times=Uniform(0.2, 0.8)),
    "meanflow": MeanFlow(),
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


@pytest.mark.parametrize("name", LEARNERS)
def test_the_guided_teacher_is_that_of_the_shifted_distribution(name: str):
    check_guided_teacher(name)


# Adversarial consistency


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


def test_adversarial_consistency_by_hand():
    check_adversarial_consistency()


def test_targets_and_jumps_are_judged_at_the_same_times():
    roles = knowing_roles(PhasedConsistency(), Flow(), clean_at(0.0))
    judge, seen = Judge(), []
    judge.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    roles.members["discriminator"] = judge
    batch = gaussian_batch()
    ends = Jumps(*torch.randn(2, 64, 2, dtype=torch.float64), batch.full(0.25))
    discriminator_loss(GAN(kind="hinge"), roles, batch, ends, until=batch.full(0.5))
    close(*seen)
    assert len(seen[0].unique()) == 64


@pytest.mark.parametrize("turn", ["generator", "discriminator"])
def test_turns_of_adversarial_consistency_keep_to_themselves(turn: str):
    objective = PhasedConsistency(teacher_guidance=Guidance())
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], objective=objective, updates=0)
    with torch.no_grad():
        for p in roles.parameters("discriminator"):
            p.add_(0.05)
    with roles.training((turn,)):
        sum(getattr(objective, turn)(roles, toy_batch(PLANE, 16, *streams().values())).values()).backward()
    moved = {name for name, m in roles.members.items() if any(p.grad is not None for p in m.parameters())}
    assert moved == {turn}


def test_losses_that_are_not_read_are_refused():
    with pytest.raises(ValueError, match=r"set gan.kind=hinge"):
        PhasedConsistency(gan=GAN(0.1, kind="relativistic"))
