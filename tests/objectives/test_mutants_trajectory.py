"""Objectives of the consistency family made wrong on purpose: the checks of the other files have to raise on each."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from closed_forms import PROCESSES
from derivatives import check_rate
from flow_maps import check_jumps
from solver_orders import check_guided_field, check_order, check_stochastic
from tangents import check_mean_flow_loss, check_mean_velocity, check_sprint, check_tangent, check_tangent_gradient
from told_guidance import check_adversarial_consistency, check_guidance_distillation, check_guided_teacher
from torch import Tensor
from trajectories import (
    check_cell_of_progressive_distillation,
    check_fixed_point,
    check_target_is_constant,
    check_truncated_weight,
)

from fastgen.models.calls import guided, look, through
from fastgen.objectives.parts import adversarial, derivative, flow_map, gan, solvers
from fastgen.objectives.parts.ops import renoised
from fastgen.objectives.trajectory import meanflow, progressive, scm, shortcut, tdd, tscd
from fastgen.process import Discrete, Flow, Prediction

VP, FLOW = PROCESSES["vp"], PROCESSES["flow"]
along, tangent, scalars = derivative.along, scm.tangent, solvers.Guidance.scalars
Check = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    """(owner, name, wrong version) of what is replaced, and the check that has to notice."""

    owner: object
    name: str
    wrong: object
    check: Check


def fixed_point(name: str, process: object = FLOW) -> Check:
    return lambda monkeypatch: check_fixed_point(process, name, monkeypatch)


def backwards(*given: object, **named: object) -> derivative.Derivative:
    found = along(*given, **named)
    return replace(found, rate=-found.rate)


def standing(*given: object, **named: object) -> derivative.Derivative:
    found = along(*given, **named)
    return replace(found, rate=0 * found.rate)


def undetached(difference: Tensor, *, power: float, c: float) -> Tensor:
    square = difference.square().sum(dim=1)
    return square / (square + c) ** power


def one_jump(model: object, x_t: Tensor, jump: flow_map.Interval, cond: object, scalars: dict) -> Tensor:
    return look(model, x_t, jump.t, cond, {"s": jump.r, **scalars}).at(jump.s)


def from_clean(settings: gan.GAN, roles: object, batch: object, x: Tensor, s: Tensor, until: Tensor) -> object:
    return renoised(roles, batch, x, law=settings.times)


GENERATOR = gan.generator_loss

MUTANTS = {
    "detached generator": Mutant(flow_map, "through", look, fixed_point("lcm")),
    "target with a graph": Mutant(flow_map, "look", through, lambda _: check_target_is_constant("lcm")),
    "shortcut with a graph": Mutant(shortcut, "look", through, lambda _: check_target_is_constant("shortcut")),
    "target role never asked": Mutant(
        flow_map, "target_of", lambda roles, ema: roles.generator, lambda _: check_jumps(FLOW)
    ),
    "clean data instead of step 0": Mutant(
        flow_map, "origin", lambda process: torch.zeros((), dtype=torch.float64), fixed_point("lcm", VP)
    ),
    "step 0 forgotten by the last phase": Mutant(
        adversarial,
        "segment_end",
        lambda edges, r, process: flow_map.segment_end(edges, r, Flow()),
        fixed_point("pcm", VP),
    ),
    "one phase only": Mutant(adversarial, "segment_end", lambda edges, r, process: 0 * r, fixed_point("pcm")),
    "segments are the student's steps": Mutant(tscd, "divided", lambda edges, count: edges, fixed_point("tscd")),
    "one step too far": Mutant(tdd.TargetDriven, "targets", lambda self, roles, batch, r: 0.5 * r, fixed_point("tdd")),
    "a jump that goes on as it began": Mutant(shortcut, "two_jumps", one_jump, fixed_point("shortcut")),
    "one teacher step": Mutant(
        progressive,
        "ddim",
        lambda field, x, t, s, *, substeps: solvers.ddim(field, x, t, s),
        lambda _: check_cell_of_progressive_distillation(),
    ),
    "no weight": Mutant(Flow, "logsnr", lambda self, t: torch.zeros_like(t), lambda _: check_truncated_weight()),
    "Heun without correction": Mutant(
        Prediction, "lerp", lambda self, other, weight: self, lambda _: check_order("heun", FLOW)
    ),
    "guidance in the other convention": Mutant(
        solvers, "guided", lambda *given, w: guided(*given, w=w + 1), lambda _: check_guided_field(FLOW)
    ),
    "too much noise": Mutant(
        solvers, "_posterior", lambda process, s, t: process.transition(s, t).std, lambda _: check_stochastic(FLOW, 0.6)
    ),
    "coarse differences": Mutant(derivative, "STEP", {torch.float64: 1.0}, lambda _: check_rate(FLOW, "differences")),
    "tangent against time": Mutant(scm, "along", backwards, lambda _: check_tangent(FLOW, 0.6, warmup=1.0)),
    "tangent without derivative": Mutant(scm, "along", standing, lambda _: check_tangent(VP, 0.3, warmup=1.0)),
    "no warm-up": Mutant(
        scm,
        "tangent",
        lambda *given, **named: tangent(*given, **{**named, "warmup": 1.0}),
        lambda _: check_tangent_gradient(50),
    ),
    "tangent uphill": Mutant(
        scm,
        "tangent",
        lambda *given, **named: (lambda value, g: (value, -g))(*tangent(*given, **named)),
        lambda _: check_tangent_gradient(50),
    ),
    "generator not in the tangent's loss": Mutant(scm, "through", look, lambda _: check_tangent_gradient(50)),
    "mean velocity against time": Mutant(meanflow, "along", backwards, lambda _: check_mean_velocity()),
    "velocity for mean velocity": Mutant(meanflow, "along", standing, lambda _: check_mean_velocity()),
    "adaptive weight with a graph": Mutant(meanflow, "adaptive", undetached, lambda _: check_mean_flow_loss()),
    "guidance forgotten": Mutant(
        solvers.Guidance,
        "field",
        lambda self, roles, batch: solvers.Field(roles.real_score, batch.cond),
        lambda _: check_guided_teacher("lcm"),
    ),
    "another scale is told": Mutant(
        solvers.Guidance,
        "scalars",
        lambda self, batch, field: {name: w - 0.05 for name, w in scalars(self, batch, field).items()},
        lambda _: check_guidance_distillation(FLOW),
    ),
    "carried as if from clean data": Mutant(
        adversarial, "_carried", from_clean, lambda _: check_adversarial_consistency()
    ),
    "a generator that never has enough": Mutant(
        adversarial, "relu", lambda margin: margin, lambda _: check_adversarial_consistency()
    ),
    "a pull as long as the tangent": Mutant(
        scm, "pulled", lambda g, *, c, norm: g, lambda _: check_tangent_gradient(50)
    ),
    "target and generated swapped": Mutant(
        adversarial,
        "LOSSES",
        {"hinge": lambda real, fake: gan.hinge_loss(fake, real)},
        lambda _: check_adversarial_consistency(),
    ),
    "generator with the discriminator": Mutant(
        gan, "generator_loss", lambda *given: -GENERATOR(*given), lambda _: check_sprint()
    ),
    "a time without its rate": Mutant(
        Discrete, "d_sigma", lambda self, t: torch.ones_like(t), lambda _: check_tangent(VP, 0.6, warmup=1.0)
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    mutant = MUTANTS[name]
    mutant.check(monkeypatch)
    monkeypatch.setattr(mutant.owner, mutant.name, mutant.wrong)
    with pytest.raises(AssertionError):
        mutant.check(monkeypatch)
