"""CTM against closed forms, and made wrong on purpose."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from any_times import (
    check_balance,
    check_exact_jumps_are_the_fixed_point,
    check_jumps_agree_on_clean_data,
    check_times,
)
from closed_forms import processes
from mutants import Mutant
from torch import Tensor

from fastgen.objectives import Needs
from fastgen.objectives.parts.flow_map import Interval
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import ctm
from fastgen.objectives.trajectory.ctm import ConsistencyTrajectory
from fastgen.process import Process


@processes
def test_exact_jumps_are_the_fixed_point(process: Process):
    check_exact_jumps_are_the_fixed_point(process)


def test_jumps_agree_on_clean_data():
    check_jumps_agree_on_clean_data()


def test_terms_are_balanced():
    check_balance()


def test_the_times_of_jumps():
    check_times()


def test_what_it_needs():
    own = Needs(images=True, real_score=True, target=True, scalars={"generator": {"s"}, "target": {"s"}})
    assert ConsistencyTrajectory(gan=GAN(0.0)).needs == own
    assert ConsistencyTrajectory(gan=GAN(1.0, start=7)).needs == own | Needs(judged_from=7)
    assert ConsistencyTrajectory(gan=GAN(0.0)).cycle == (("generator",),)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(ConsistencyTrajectory, ema=0.0), "ema is 0: what carries"),
        (partial(ConsistencyTrajectory, most=0), "most 0"),
        (partial(ConsistencyTrajectory, teacher_guidance=Guidance(2.0, 2.0)), "set denoising=0"),
        (partial(ConsistencyTrajectory, gan=GAN(1.0, joint=True)), "gan.joint looks where"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def told_its_beginning(model: object, batch: object, x: Tensor, t: Tensor, s: Tensor, told: dict) -> Tensor:
    return JUMPED(model, batch, x, t, (s + t) / 2, told)


def by_itself(roles: object, batch: object, x: Tensor, t: Tensor, s: Tensor, told: dict) -> Tensor:
    x_s = JUMPED(roles.generator, batch, x, t, s, told)
    return JUMPED(roles.generator, batch, x_s, s, torch.zeros_like(s), told)


def to_the_middle(self: ConsistencyTrajectory, *given: object) -> tuple[Interval, int]:
    found, steps = INTERVAL(self, *given)
    return Interval(found.t, found.r, found.r), steps


JUMPED, INTERVAL = ctm.jumped, ConsistencyTrajectory._interval
SAME = {"heun": lambda field, x, t, s, *, substeps=1: x}
MUTANTS = {
    "no teacher": Mutant.of(ctm, "SOLVERS", SAME, check_jumps_agree_on_clean_data),
    "jumps half way": Mutant.of(ctm, "jumped", told_its_beginning, check_jumps_agree_on_clean_data),
    "carried by itself": Mutant.of(ctm, "to_clean", by_itself, check_jumps_agree_on_clean_data),
    "compared at s": Mutant.of(
        ctm, "to_clean", lambda roles, *given: JUMPED(roles.generator, *given), check_jumps_agree_on_clean_data
    ),
    "an average that stays": Mutant.of(ctm, "follow", lambda *given: None, check_jumps_agree_on_clean_data),
    "not balanced": Mutant.of(ctm, "strength", lambda loss, x: torch.ones(()), check_balance),
    "balanced by losses": Mutant.of(ctm, "strength", lambda loss, x: loss.detach(), check_balance),
    "an adversary of little weight": Mutant.of(ctm, "MOST", 0.01, check_balance),
    "never to clean data": Mutant.of(ConsistencyTrajectory, "_interval", to_the_middle, check_times),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
