"""Objectives against closed forms and fixed points, and who gets gradients.

What matters most is written as `check_*` functions in `tests/checks/`; the files of mutants run them on objectives
made wrong on purpose.
"""

from dataclasses import replace

import pytest
import torch
from closed_forms import PLANE, processes, streams
from fixed_points import (
    DIRECTIONS,
    check_dmd_direction,
    check_fixed_point,
    check_noise_below_resolution_is_harmless,
    check_only_the_real_score_is_guided,
    check_scores_hold_no_graph,
    check_the_fake_turn_learns_of_what_is_there,
    check_vsd_is_the_kl_gradient,
)
from recorder import Recorder

from fastgen.models.calls import guided, look, through
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import OBJECTIVES, Batch, Objective, Pair
from fastgen.objectives.parts.matching import Matching
from fastgen.objectives.parts.ops import surrogate
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles


@processes
@pytest.mark.parametrize("t", [0.3, 0.6])
def test_vsd_is_the_kl_gradient(process: Process, t: float):
    check_vsd_is_the_kl_gradient(process, t)


@processes
@pytest.mark.parametrize("name", DIRECTIONS)
def test_dmd_follows_its_formula(process: Process, name: str):
    check_dmd_direction(process, name)


def test_noise_below_resolution_is_harmless():
    check_noise_below_resolution_is_harmless()


MATCHING = [name for name, kind in OBJECTIVES.items() if isinstance(kind(), Matching)]


@processes
@pytest.mark.parametrize("name", MATCHING)
def test_equal_scores_leave_the_generator_alone(process: Process, name: str):
    check_fixed_point(process, name)


def test_only_the_real_score_is_guided():
    check_only_the_real_score_is_guided()


# Who gets gradients


def batch_for(objective: Objective) -> Batch:
    """A batch with exactly what the objective says it needs."""
    batch = toy_batch(PLANE, 16, *streams().values())
    batch.pairs = Pair(batch.noise(), batch.noise()) if objective.needs.pairs else None
    batch.changed = batch.cond if objective.needs.context else None
    batch.real = batch.real if objective.needs.images else None
    batch.cond = batch.cond if objective.needs.null else replace(batch.cond, null=None)
    return batch


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_reach_exactly_the_turns_roles(name: str):
    objective = OBJECTIVES[name]()
    sampler = objective.needs.sampler or "renoise"
    roles = toy_roles(Flow(), PLANE, [even_grid(2), even_grid(4)], updates=0, objective=objective, sampler=sampler)
    for turn in dict.fromkeys(objective.cycle):
        with roles.training(turn):
            terms = getattr(objective, turn[0])(roles, batch_for(objective))
            sum(terms.values()).backward()
        assert all(term.ndim == 0 and term.isfinite() for term in terms.values())
        for role in roles.members:
            reached = [parameter.grad is not None for parameter in roles.parameters(role)]
            assert all(reached) if role in turn else not any(reached), f"{turn}: {role}"
            roles[role].zero_grad()


THROUGH_THE_SCORES = {"sfd", "sid", "sida", "sid_lsg", "sid_few_step", "sim", "uni_instruct"}


@pytest.mark.parametrize("name", MATCHING)
def test_the_generators_turn_goes_through_the_scores_or_only_looks(name: str):
    """By the family that the objective is of; and no turn writes a gradient to what it only asks."""
    objective = OBJECTIVES[name]()
    sampler = objective.needs.sampler or "renoise"
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], updates=0, objective=objective, sampler=sampler)
    asked = {role: Recorder(roles[role]) for role in ("real_score", "fake_score")}
    roles = Roles(roles.members | asked, Plan(roles.plan.grids, sampler=sampler))
    with roles.training(("generator",)):
        sum(objective.generator(roles, batch_for(objective)).values()).backward()
    for recorder in asked.values():
        assert {call.recorded_graph for call in recorder.calls} == {name in THROUGH_THE_SCORES}
        assert all(parameter.grad is None for parameter in recorder.parameters())


def test_scores_hold_no_graph():
    check_scores_hold_no_graph()


@pytest.mark.parametrize("name", MATCHING)
def test_turns_that_share_a_batch_learn_of_the_same_samples(name: str):
    check_the_fake_turn_learns_of_what_is_there(name)


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_look_stores_no_graph_and_through_keeps_the_one_to_x_t(w: float):
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    batch = toy_batch(PLANE, 16, *streams().values())
    x_t, t = batch.x0.requires_grad_(), batch.full(0.5)
    looked = guided(look, roles.fake_score, x_t, t, batch.cond, w=w)
    seen = guided(through, roles.fake_score, x_t, t, batch.cond, w=w)
    assert torch.equal(looked.x0, seen.x0)
    assert not looked.x0.requires_grad
    seen.x0.sum().backward()
    assert x_t.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in roles.parameters("fake_score"))


def test_the_surrogates_gradient_is_what_it_was_given():
    x, grad = torch.randn(2, 5, 3)
    x.requires_grad_()
    surrogate(x, grad).backward()
    torch.testing.assert_close(x.grad, grad / 15, rtol=1e-4, atol=1e-6)
