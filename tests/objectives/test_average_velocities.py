"""Align Your Flow, AlphaFlow and improved MeanFlow against closed forms, and made wrong on purpose."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from average_velocities import (
    check_curriculum,
    check_curriculum_ends_in_the_derivative,
    check_improved,
    check_map,
)
from mutants import Mutant

from fastgen.models.calls import look
from fastgen.objectives import Needs
from fastgen.objectives.parts import mean_velocity
from fastgen.objectives.parts.derivative import Derivative, along
from fastgen.objectives.parts.mean_velocity import with_diagonal
from fastgen.objectives.trajectory import alphaflow, ayf, improved_meanflow
from fastgen.objectives.trajectory.alphaflow import AlphaFlow
from fastgen.objectives.trajectory.ayf import AlignYourFlow
from fastgen.objectives.trajectory.improved_meanflow import ImprovedMeanFlow

KINDS = (AlignYourFlow, AlphaFlow, ImprovedMeanFlow)


@pytest.mark.parametrize("images", [0, 50, 1000])
def test_the_map_is_pulled_along_its_tangent(images: int):
    check_map(images)


@pytest.mark.parametrize("images", [0, 50, 60, 100])
def test_the_curriculum_goes_from_velocities_to_mean_velocities(images: int):
    check_curriculum(images)


def test_the_curriculum_ends_in_the_derivative():
    check_curriculum_ends_in_the_derivative()


def check_course() -> None:
    objective = AlphaFlow(begin=100, end=300)
    assert objective.alpha(0) == pytest.approx(1)
    assert objective.alpha(200) == 0.5
    assert objective.alpha(220) == pytest.approx(0.0759, abs=1e-4)
    assert objective.alpha(250) == objective.alpha(10**12) == 0


def test_the_course_of_the_curriculum():
    check_course()


@pytest.mark.parametrize("diagonal", [0.0, 1.0])
def test_mean_velocities_are_trained_as_velocities(diagonal: float):
    check_improved(diagonal)


@pytest.mark.parametrize("kind", KINDS)
def test_what_they_need(kind: type):
    own = Needs(images=True, process="flow", sampler="ode", scalars={"generator": {"s"}}, fine_times=True)
    assert kind().needs == own | Needs(real_score=True)
    assert not kind(derivative_step=0.03).needs.fine_times


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(AlignYourFlow, normaliser=0.0), "normaliser 0"),
        (partial(AlphaFlow, begin=5, end=5), "0 <= begin < end"),
        (partial(AlphaFlow, diagonal=2.0), "diagonal is 2"),
        (partial(ImprovedMeanFlow, diagonal=-1.0), "diagonal is -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def backwards(*given: object, **named: object) -> Derivative:
    found = along(*given, **named)
    return replace(found, rate=-found.rate)


def along_the_sample(model: object, x: object, t: object, cond: object, scalars: dict) -> object:
    return look(model, x, t, cond, {**scalars, "s": 0.5 * scalars["s"]})


MAP = partial(check_map, 1000)
HALF, END, OWN = partial(check_curriculum, 50), partial(check_curriculum, 100), partial(check_improved, 0.0)
MUTANTS = {
    "ayf: against time": Mutant.of(ayf, "along", backwards, MAP),
    "ayf: the whole derivative": Mutant.of(ayf, "MOST", 1.0, MAP),
    "ayf: detached generator": Mutant.of(ayf, "through", look, MAP),
    "ayf: intervals of one length": Mutant.of(ayf, "pad_like", lambda level, x: level[:, None] * 0 + 0.5, MAP),
    "alphaflow: the rest from where it began": Mutant.of(
        alphaflow, "look", lambda model, x, t, cond, told: look(model, x, t * 0 + 0.9, cond, told), HALF
    ),
    "alphaflow: detached generator": Mutant.of(alphaflow, "through", look, HALF),
    "alphaflow: never a derivative": Mutant.of(alphaflow, "LEAST", 0.0, check_course),
    "alphaflow: velocity for mean velocity": Mutant.of(
        alphaflow, "mean_velocity", lambda roles, batch, chord, *, step: chord.v, END
    ),
    "improved: along another velocity": Mutant.of(improved_meanflow, "look", along_the_sample, OWN),
    "improved: against time": Mutant.of(improved_meanflow, "along", backwards, OWN),
    "improved: the diagonal alone": Mutant.of(
        mean_velocity, "with_diagonal", lambda t, s, share, batch: with_diagonal(t, s, 1.0, batch), OWN
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
