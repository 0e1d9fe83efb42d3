"""TwinFlow against closed forms, and made wrong on purpose."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from closed_forms import PLANE, streams
from mutants import Mutant
from torch import Tensor
from twins import (
    check_exact_map_nearly_rests,
    check_map,
    check_matching,
    check_only_scores_of_its_own_are_told_negative_times,
)

from fastgen.models.calls import look
from fastgen.models.walk import scalars_at
from fastgen.objectives import Needs
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import twinflow
from fastgen.objectives.trajectory.twinflow import JumpTimes, TwinFlow
from fastgen.process import Flow, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles


def test_jumps_and_the_fake_score():
    check_map()


def test_the_exact_map_nearly_rests():
    check_exact_map_nearly_rests()


def test_the_scores_difference_moves_whole_jumps():
    check_matching()


def test_only_scores_of_its_own_are_told_negative_times():
    check_only_scores_of_its_own_are_told_negative_times()


def test_kinds_of_rows_are_as_frequent():
    objective = TwinFlow()
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0, objective=objective)
    jump = objective._jump(roles, toy_batch(PLANE, 4000, *streams().values()))
    near = (jump.t - jump.s <= 0.05 * jump.t) & ~jump.fake
    assert jump.whole.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert jump.fake.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert near.double().mean().item() == pytest.approx(0.25 + 0.0125, abs=0.03)
    assert (jump.t == 1)[jump.whole].all()
    assert (jump.s == 0)[jump.whole].all()
    assert (jump.s >= 0).all()


def test_a_network_tells_both_signs_apart_and_no_sampler_asks_for_the_negative():
    objective = TwinFlow()
    roles = toy_roles(Flow(), PLANE, [even_grid(4)], updates=0, objective=objective)
    batch = toy_batch(PLANE, 8, *streams().values())
    t, x_t = batch.full(0.4), batch.noise()
    torch.nn.init.normal_(roles["generator"].embeddings.embed["s"][-1].weight)
    positive, negative = (look(roles.generator, x_t, t, batch.cond, {"s": s}).x0 for s in (t, -t))
    assert (positive - negative).norm() > 1e-2
    for sampler in ("ode", "renoise"):
        told = scalars_at(even_grid(4).tolist(), ["s"], sampler=sampler, guidance=None)
        assert all(values["s"] >= 0 for values in told.values())


def test_prompts_and_a_teacher_are_all_it_needs():
    assert TwinFlow().needs == Needs(real_score=True, process="flow", null=True, scalars={"generator": {"s"}})
    assert not TwinFlow(teacher_guidance=Guidance()).needs.null


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(TwinFlow, near=0.0), "near is 0"),
        (partial(TwinFlow, substeps=0), "substeps 0"),
        (partial(TwinFlow, bound=0.0), "bound is 0"),
        (partial(TwinFlow, matching=-1.0), "matching -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def mirrored(model: object, x: Tensor, t: Tensor, cond: object, told: dict[str, Tensor]) -> object:
    return look(model, x, t, cond, {"s": -told["s"]})


MUTANTS = {
    "detached generator": Mutant.of(twinflow, "through", look, check_map),
    "all jumps of one weight": Mutant.of(twinflow, "weight_of", lambda jump: torch.ones_like(jump.t), check_map),
    "the rest in one step": Mutant.of(twinflow, "pairwise", lambda times: [tuple(list(times)[::2])], check_map),
    "the fake score is told a trajectory's time": Mutant.of(
        JumpTimes, "told", property(lambda jump: jump.s), check_map
    ),
    "the fake score follows the teacher": Mutant.of(
        twinflow.Noised, "of", lambda *given, OF=twinflow.Noised.of: OF(*given[:2], 0 * given[2], given[3]), check_map
    ),
    "teacher's step twice": Mutant.of(
        TwinFlow, "_excess", lambda *given, OF=TwinFlow._excess: 2 * OF(*given), check_exact_map_nearly_rests
    ),
    "the scores exchanged": Mutant.of(twinflow, "look", mirrored, check_matching),
    "matched by parts of the batch": Mutant.of(twinflow, "KINDS", 3, check_matching),
    "no score of its own": Mutant.of(
        JumpTimes, "told", property(lambda jump: jump.s), check_only_scores_of_its_own_are_told_negative_times
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
