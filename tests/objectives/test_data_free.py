"""BOOT, FreeFlow and TBCM against closed forms, and made wrong on purpose."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
from closed_forms import PROCESSES, processes
from data_free import (
    EXACT,
    check_backward_gradient,
    check_backward_route,
    check_correction,
    check_exact_map_is_the_fixed_point,
    check_generating_velocity,
    check_prediction,
    check_signal,
)
from mutants import Mutant
from torch import Tensor

from fastgen.models.calls import look, through
from fastgen.objectives.parts.derivative import Derivative, along
from fastgen.objectives.parts.ops import surrogate
from fastgen.objectives.parts.routes import route_of
from fastgen.objectives.parts.solvers import Field, Guidance
from fastgen.objectives.trajectory import boot, freeflow, tbcm
from fastgen.objectives.trajectory.boot import Bootstrapping
from fastgen.objectives.trajectory.freeflow import FreeFlow
from fastgen.objectives.trajectory.scm import errors_at
from fastgen.objectives.trajectory.tbcm import TrajectoryBackward
from fastgen.process import Process

VP, FLOW = PROCESSES["vp"], PROCESSES["flow"]
PLACES = [(name, kind) for name in EXACT for kind in (("flow",) if name == "freeflow" else PROCESSES)]


@pytest.mark.parametrize(("name", "process"), PLACES)
def test_the_exact_map_is_the_fixed_point(name: str, process: str):
    check_exact_map_is_the_fixed_point(PROCESSES[process], name)


@processes
def test_a_step_of_the_signal(process: Process):
    check_signal(process)


def test_the_teacher_is_asked_where_the_student_arrives():
    check_generating_velocity()


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_predictions_are_weighed_by_their_errors(power: float):
    check_prediction(power)


def test_corrections_are_as_long_as_they_are_told():
    check_correction()


@processes
def test_the_teachers_route(process: Process):
    check_backward_route(process)


@processes
def test_every_state_but_the_noise_is_learned(process: Process):
    check_backward_gradient(process)


def backwards(*given: object, **named: object) -> Derivative:
    found = along(*given, **named)
    return replace(found, rate=-found.rate)


def without_weight(settings: object, roles: object, batch: object, start: object, followed: object) -> Tensor:
    return 2 * errors_at(settings, roles, batch, start, followed)


def from_the_noise(self: Field, x_t: Tensor, t: Tensor) -> object:
    return CALL(self, x_t, 0 * t + t.max())


CALL = Field.__call__
SIGNAL: Callable[[], None] = partial(check_signal, FLOW)
ROUTE: Callable[[], None] = partial(check_backward_route, VP)
MUTANTS = {
    "boot: detached generator": Mutant.of(boot, "through", look, SIGNAL),
    "boot: told the step's beginning": Mutant.of(
        boot, "drawn_step", lambda grid, batch: tuple(reversed(DRAWN(grid, batch))), SIGNAL
    ),
    "boot: another row": Mutant.of(boot, "ROWS", {"x0": boot.ROWS["eps"]}, SIGNAL),
    "boot: lands elsewhere": Mutant.of(boot, "landing_on", lambda p, x, t, y, s: LANDING(p, x, t, y, s / 2), SIGNAL),
    "freeflow: against time": Mutant.of(freeflow, "along", backwards, check_generating_velocity),
    "freeflow: teacher asked elsewhere": Mutant.of(Field, "__call__", from_the_noise, check_generating_velocity),
    "freeflow: detached generator": Mutant.of(freeflow, "through", look, partial(check_prediction, 1.0)),
    "freeflow: away from the teacher": Mutant.of(
        freeflow, "surrogate", lambda x, grad: surrogate(x, -grad), check_correction
    ),
    "freeflow: no length": Mutant.of(freeflow, "_length", lambda x: x.abs().sum() * 0 + 1, check_correction),
    "freeflow: fake score asked elsewhere": Mutant.of(
        freeflow, "look", lambda *given: through(*given[:1], given[1] * 0.5, *given[2:]), check_correction
    ),
    "tbcm: no shift": Mutant.of(tbcm, "route_of", lambda process, n, *, shift: route_of(process, n, shift=1.0), ROUTE),
    "tbcm: noise is learned too": Mutant.of(
        tbcm, "islice", lambda states, first, end: states, partial(check_backward_gradient, VP)
    ),
    "tbcm: twice the errors": Mutant.of(tbcm, "errors_at", without_weight, partial(check_backward_gradient, FLOW)),
}
DRAWN, LANDING = boot.drawn_step, boot.landing_on


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(Bootstrapping, steps=0), "steps is 0"),
        (partial(FreeFlow, correction=1.0), "no trajectory to follow alone"),
        (partial(FreeFlow, teacher_guidance=Guidance(1.0, 4.0, told=True)), "set correction=0"),
        (partial(TrajectoryBackward, route=1), "route is 1"),
    ],
)
def test_settings_that_nothing_could_be_learned_with_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def test_no_images_are_asked_for():
    for objective in EXACT.values():
        assert not objective.needs.images
        assert objective.needs.real_score
