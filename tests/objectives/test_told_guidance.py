"""Guidance that the student is told, and adversaries of jumps, by hand."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from adversaries import Judge
from closed_forms import PLANE, close, processes, streams
from flow_maps import clean_at, gaussian_batch, knowing_roles
from mutants import Mutant
from told_guidance import (
    LEARNERS,
    PASSED,
    check_adversarial_consistency,
    check_guidance_distillation,
    check_guided_route,
    check_guided_teacher,
    check_slope,
    classed,
    guided_roles,
)
from torch import Tensor

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.objectives import Batch, Needs
from fastgen.objectives.parts.adversarial import discriminator_loss
from fastgen.objectives.parts.flow_map import Jumps
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.routes import in_rows, teacher_states
from fastgen.objectives.parts.solvers import Field, Guidance
from fastgen.objectives.regression import guidance_distillation
from fastgen.objectives.regression.guidance_distillation import GuidanceDistillation
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.pcm import PhasedConsistency
from fastgen.process import Flow, Prediction, Process, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

# Guidance that is told


@processes
def test_guidance_distillation_learns_the_guided_belief(process: Process):
    check_guidance_distillation(process)
    check_guidance_distillation(process, PASSED)


@processes
def test_guidance_is_learned_where_the_guided_teacher_passes(process: Process):
    check_guided_route(process)


def unguided_way(roles: Roles, batch: Batch, field: Field, edges: Tensor) -> Iterator[tuple[Tensor, Prediction]]:
    for x_t, belief in teacher_states(roles, batch, Field(field.model, field.cond), edges):
        yield x_t, field(x_t, belief.t)


def first_scale(self: Guidance, batch: Batch, field: Field) -> dict[str, Tensor]:
    return {name: w[:1].expand(len(w)) for name, w in SCALARS(self, batch, field).items()}


SCALARS = Guidance.scalars
LEARNED, WAY = partial(check_guidance_distillation, Flow(), PASSED), partial(check_guided_route, Flow())
MUTANTS = {
    "detached generator": Mutant.of(guidance_distillation, "through", look, partial(check_slope, PASSED)),
    "an unguided way": Mutant.of(guidance_distillation, "teacher_states", unguided_way, WAY),
    "beliefs of other states": Mutant.of(
        guidance_distillation, "in_rows", lambda beliefs: in_rows(beliefs[::-1]), LEARNED
    ),
    "one sample's scale": Mutant.of(Guidance, "scalars", first_scale, LEARNED),
    "the noise left out": Mutant.of(
        guidance_distillation, "teacher_states", lambda *given: 2 * list(teacher_states(*given))[2:], WAY
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_route_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)


def test_a_route_reads_no_images():
    assert PASSED.needs == Needs(real_score=True, null=True, scalars={"generator": {"w"}})
    with pytest.raises(ValueError, match="route is 1: need 0"):
        GuidanceDistillation(route=1)


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


@pytest.mark.parametrize("name", LEARNERS)
def test_the_guided_teacher_is_that_of_the_shifted_distribution(name: str):
    check_guided_teacher(name)


# Adversarial consistency


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
    with pytest.raises(ValueError, match=r"gan\.kind is relativistic, but .* hinge or logistic losses: set one"):
        PhasedConsistency(gan=GAN(0.1, kind="relativistic"))
