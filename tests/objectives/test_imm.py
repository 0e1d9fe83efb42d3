"""IMM against closed forms, and made wrong on purpose."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from closed_forms import PLANE, processes, streams
from mutants import Mutant
from particles import (
    check_discrepancy,
    check_exact_jumps_agree_in_law,
    check_exact_jumps_are_the_fixed_point,
    check_jumps_of_groups,
    check_times,
    check_weight,
)
from torch import Tensor

from fastgen.errors import UserError
from fastgen.models.calls import look, through
from fastgen.objectives import Needs
from fastgen.objectives.parts import flow_map, moments
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.parts.velocity import Trajectory
from fastgen.objectives.trajectory import imm
from fastgen.objectives.trajectory.imm import InductiveMomentMatching
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles


def test_the_discrepancy_of_two_normal_laws():
    check_discrepancy()


@pytest.mark.parametrize(("group", "a"), [(1, 1.0), (4, 1.0), (4, 2.0)])
def test_jumps_of_groups(group: int, a: float):
    check_jumps_of_groups(group, a)


@processes
def test_exact_jumps_are_the_fixed_point(process: Process):
    check_exact_jumps_are_the_fixed_point(process)


def test_exact_jumps_agree_in_law():
    check_exact_jumps_agree_in_law()


def test_the_times_of_a_group():
    check_times()


@processes
def test_the_weight_of_noise_levels(process: Process):
    check_weight(process)


def test_conditions_are_dropped_in_both_jumps(monkeypatch: pytest.MonkeyPatch):
    objective = InductiveMomentMatching(dropout=1.0)
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], updates=0, objective=objective)
    asked = []
    for name, call in (("look", look), ("through", through)):
        monkeypatch.setattr(flow_map, name, lambda *given, CALL=call: (asked.append(given[3]), CALL(*given))[1])
    batch = toy_batch(PLANE, 8, **streams())
    objective.generator(roles, batch)
    null = batch.cond.dropped(torch.ones(8, dtype=torch.bool))
    assert len(asked) == 2
    for cond in asked:
        assert all(torch.equal(cond.batched[name], null.batched[name]) for name in null.batched)


def test_what_it_needs():
    own = Needs(images=True, scalars={"generator": {"s"}}, group=4)
    assert InductiveMomentMatching(dropout=0.0).needs == own
    guided = InductiveMomentMatching(velocity="real_score", teacher_guidance=Guidance(2.0, 2.0))
    assert guided.needs == own | Needs(real_score=True, null=True)


def test_a_micro_batch_is_a_whole_number_of_groups():
    objective = InductiveMomentMatching(group=3)
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0, objective=objective)
    with pytest.raises(UserError, match=r"objective\.group is 3, and a micro-batch has 8 samples"):
        objective.generator(roles, toy_batch(PLANE, 8, **streams()))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(InductiveMomentMatching, group=0), "group is 0"),
        (partial(InductiveMomentMatching, k=0), "k 0"),
        (partial(InductiveMomentMatching, highest=0.0), "highest 0"),
        (partial(InductiveMomentMatching, gap=1.0), "gap is 1"),
        (partial(InductiveMomentMatching, dropout=1.5), "dropout 1.5"),
        (partial(InductiveMomentMatching, teacher_guidance=Guidance(2.0, 2.0)), "set teacher_guidance=1, or"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def without_repulsion(a: Tensor, b: Tensor, **mode: str) -> Tensor:
    return CDIST(a, b, **mode).detach() if a is b else CDIST(a, b, **mode)


def believed(settings: object, roles: object, batch: object, start: object) -> Trajectory:
    return Trajectory(look(roles.real_score, start.x_t, start.t, batch.cond), {})


def unpaired(x: Tensor, y: Tensor, rate: Tensor) -> Tensor:
    return DISCREPANCY(x, y.flip(1), rate) + DISCREPANCY(x.flip(0), y, rate)


DISCREPANCY, CDIST = moments.laplace_discrepancy, torch.cdist
MUTANTS = {
    "detached generator": Mutant.of(flow_map, "through", look, check_jumps_of_groups),
    "a target that learns": Mutant.of(flow_map, "look", through, check_jumps_of_groups),
    "of the wrong sign": Mutant.of(
        imm, "laplace_discrepancy", lambda *given: -DISCREPANCY(*given), check_exact_jumps_agree_in_law
    ),
    "no repulsion": Mutant.of(torch, "cdist", without_repulsion, check_jumps_of_groups),
    "other groups' particles": Mutant.of(imm, "laplace_discrepancy", unpaired, check_jumps_of_groups),
    "one width of kernels": Mutant.of(
        imm, "scale_of", lambda process, interval, sigma_data: torch.ones_like(interval.t), check_jumps_of_groups
    ),
    "groups of one weight": Mutant.of(
        imm, "weight_of", lambda process, t, **settings: torch.ones_like(t), check_jumps_of_groups
    ),
    "the teacher's step": Mutant.of(imm, "trajectory_of", believed, check_jumps_of_groups),
    "rows' own times": Mutant.of(imm, "of_first", lambda values, group: values, check_times),
    "a decrement in time": Mutant.of(
        InductiveMomentMatching, "below", lambda self, process, t: (t - 0.02).clamp(min=0), check_times
    ),
    "no highest level": Mutant.of(InductiveMomentMatching, "_seen", lambda self, process, t: t, check_times),
    "never at s": Mutant.of(torch, "maximum", lambda s, r: r, check_times),
    "elements that add up": Mutant.of(
        torch, "cdist", lambda a, b, **mode: CDIST(a, b, **mode) * a.shape[-1], check_discrepancy
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
