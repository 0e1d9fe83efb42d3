"""Objectives of the consistency family made wrong on purpose: the checks of the other files have to raise on each."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from closed_forms import PROCESSES
from derivatives import check_rate
from flow_maps import check_jumps
from mutants import Mutant
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


def fixed_point(name: str, process: object = FLOW) -> Callable[[], None]:
    return lambda: check_fixed_point(process, name)


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
    "detached generator": Mutant.of(flow_map, "through", look, fixed_point("lcm")),
    "target with a graph": Mutant.of(flow_map, "look", through, lambda: check_target_is_constant("lcm")),
    "shortcut with a graph": Mutant.of(shortcut, "look", through, lambda: check_target_is_constant("shortcut")),
    "target role never asked": Mutant.of(
        flow_map, "target_of", lambda roles, ema: roles.generator, lambda: check_jumps(FLOW)
    ),
    "clean data instead of step 0": Mutant.of(
        flow_map, "origin", lambda process, device="cpu": torch.zeros((), dtype=torch.float64), fixed_point("lcm", VP)
    ),
    "step 0 forgotten by the last phase": Mutant.of(
        adversarial,
        "segment_end",
        lambda edges, r, process: flow_map.segment_end(edges, r, Flow()),
        fixed_point("pcm", VP),
    ),
    "one phase only": Mutant.of(adversarial, "segment_end", lambda edges, r, process: 0 * r, fixed_point("pcm")),
    "segments are the student's steps": Mutant.of(tscd, "divided", lambda edges, count: edges, fixed_point("tscd")),
    "one step too far": Mutant.of(
        tdd.TargetDriven, "targets", lambda self, roles, batch, r: 0.5 * r, fixed_point("tdd")
    ),
    "a jump that goes on as it began": Mutant.of(shortcut, "two_jumps", one_jump, fixed_point("shortcut")),
    "one teacher step": Mutant.of(
        progressive,
        "ddim",
        lambda field, x, t, s, *, substeps: solvers.ddim(field, x, t, s),
        lambda: check_cell_of_progressive_distillation(),
    ),
    "no weight": Mutant.of(Flow, "logsnr", lambda self, t: torch.zeros_like(t), lambda: check_truncated_weight()),
    "Heun without correction": Mutant.of(
        Prediction, "lerp", lambda self, other, weight: self, lambda: check_order("heun", FLOW)
    ),
    "guidance in the other convention": Mutant.of(
        solvers, "guided", lambda *given, w: guided(*given, w=w + 1), lambda: check_guided_field(FLOW)
    ),
    "too much noise": Mutant.of(
        solvers, "_posterior", lambda process, s, t: process.transition(s, t).std, lambda: check_stochastic(FLOW, 0.6)
    ),
    "coarse differences": Mutant.of(derivative, "STEP", {torch.float64: 1.0}, lambda: check_rate(FLOW, "differences")),
    "tangent against time": Mutant.of(scm, "along", backwards, lambda: check_tangent(FLOW, 0.6, warmup=1.0)),
    "tangent without derivative": Mutant.of(scm, "along", standing, lambda: check_tangent(VP, 0.3, warmup=1.0)),
    "no warm-up": Mutant.of(
        scm,
        "tangent",
        lambda *given, **named: tangent(*given, **{**named, "warmup": 1.0}),
        lambda: check_tangent_gradient(50),
    ),
    "tangent uphill": Mutant.of(
        scm,
        "tangent",
        lambda *given, **named: (lambda value, g: (value, -g))(*tangent(*given, **named)),
        lambda: check_tangent_gradient(50),
    ),
    "generator not in the tangent's loss": Mutant.of(scm, "through", look, lambda: check_tangent_gradient(50)),
    "mean velocity against time": Mutant.of(meanflow, "along", backwards, lambda: check_mean_velocity()),
    "velocity for mean velocity": Mutant.of(meanflow, "along", standing, lambda: check_mean_velocity()),
    "adaptive weight with a graph": Mutant.of(meanflow, "adaptive", undetached, lambda: check_mean_flow_loss()),
    "guidance forgotten": Mutant.of(
        solvers.Guidance,
        "field",
        lambda self, roles, batch: solvers.Field(roles.real_score, batch.cond),
        lambda: check_guided_teacher("lcm"),
    ),
    "another scale is told": Mutant.of(
        solvers.Guidance,
        "scalars",
        lambda self, batch, field: {name: w - 0.05 for name, w in scalars(self, batch, field).items()},
        lambda: check_guidance_distillation(FLOW),
    ),
    "carried as if from clean data": Mutant.of(
        adversarial, "_carried", from_clean, lambda: check_adversarial_consistency()
    ),
    "a generator that never has enough": Mutant.of(
        adversarial, "relu", lambda margin: margin, lambda: check_adversarial_consistency()
    ),
    "a pull as long as the tangent": Mutant.of(
        scm, "pulled", lambda g, *, c, norm: g, lambda: check_tangent_gradient(50)
    ),
    "target and generated swapped": Mutant.of(
        adversarial,
        "LOSSES",
        {"hinge": lambda real, fake: gan.hinge_loss(fake, real)},
        lambda: check_adversarial_consistency(),
    ),
    "generator with the discriminator": Mutant.of(
        gan, "generator_loss", lambda *given: -GENERATOR(*given), lambda: check_sprint()
    ),
    "a time without its rate": Mutant.of(
        Discrete, "d_sigma", lambda self, t: torch.ones_like(t), lambda: check_tangent(VP, 0.6, warmup=1.0)
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
