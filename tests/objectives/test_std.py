"""STD against closed forms, and made wrong on purpose."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from mutants import Mutant
from single_trajectories import check_adversary, check_jumps_agree, check_states, check_substeps
from torch import Tensor

from fastgen.models.calls import look, through
from fastgen.objectives import Needs
from fastgen.objectives.parts import flow_map
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.originals import DATA, Originals, TimedSamples
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import std
from fastgen.objectives.trajectory.std import SingleTrajectory


def test_states_lie_on_one_trajectory():
    check_states()


def test_the_teacher_takes_several_steps_in_an_interval():
    check_substeps()


@pytest.mark.usefixtures("unchecked")
def test_a_trajectory_has_a_step_however_late_it_begins(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(std, "edges_of", lambda *_: torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    for strength, begins in ((1.0, 1.0), (0.6, 0.5), (0.01, 0.25)):
        route = SingleTrajectory(grid=4, strength=strength)._route(None, None)
        assert (float(route[0]), float(route[-1])) == (begins, 0.0)
        assert len(route) == 1 + round(4 * begins)


def test_neighbouring_states_jump_to_one_place():
    check_jumps_agree()


def test_the_adversary_sees_less_noise_in_real_samples():
    check_adversary()


def test_what_it_needs():
    own = Needs(images=True, real_score=True, sampler="ode")
    alone = SingleTrajectory(teacher_guidance=Guidance(), gan=GAN(0.0))
    assert alone.needs == own
    assert alone.cycle == (("generator",),)
    assert SingleTrajectory().needs == own | Needs(null=True, pixels=True)
    assert SingleTrajectory().cycle == (("generator",), ("discriminator",))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(SingleTrajectory, grid=0), "grid is 0"),
        (partial(SingleTrajectory, substeps=0), "substeps 0"),
        (partial(SingleTrajectory, strength=0.0), "strength 0"),
        (partial(SingleTrajectory, reach=1.5), "reach 1.5"),
        (partial(SingleTrajectory, gan=GAN(0.1)), r"set gan\.pixels=true, or gan=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def alike(roles: object, batch: object, landing: object) -> TimedSamples:
    return TimedSamples(roles.process.renoise(batch.x0, landing.t, batch.noise()))


def anywhere(self: SingleTrajectory, roles: object, batch: object, field: object, route: Tensor) -> tuple[int, Tensor]:
    depth, _ = STATE(self, roles, replace(batch, script=list(batch.script)), field, route)
    return depth, std.noised(roles, batch, batch.full(float(route[depth]))).x_t


def to_clean_data(ends: object) -> object:
    return std.Landing(ends.generated * 0.9, None, ends.s, ends.generated * 0.9)


def once(solver: Callable[..., Tensor], *given: object, substeps: int) -> Tensor:
    return solver(*given)


STATE, ROUTE = SingleTrajectory._state, SingleTrajectory._route
MUTANTS = {
    "detached generator": Mutant.of(flow_map, "through", look, check_jumps_agree),
    "a target that learns": Mutant.of(flow_map, "look", through, check_jumps_agree),
    "noised images everywhere": Mutant.of(SingleTrajectory, "_state", anywhere, check_states),
    "from the noise on": Mutant.of(
        SingleTrajectory, "_route", lambda self, *given: ROUTE(replace(self, strength=1.0), *given), check_states
    ),
    "one step in each interval": Mutant.of(
        std, "SOLVERS", {name: partial(once, solver) for name, solver in std.SOLVERS.items()}, check_substeps
    ),
    "always to the next time": Mutant.of(
        std, "integers", lambda rng, below, count: torch.zeros(count, dtype=torch.int64), check_states
    ),
    "real samples at the same noise": Mutant.of(std, "CLEANER", Originals(alike, Needs()), check_adversary),
    "clean real samples": Mutant.of(std, "CLEANER", DATA, check_adversary),
    "another sample judged": Mutant.of(std, "as_it_is", to_clean_data, check_adversary),
    "the adversary's wrong side": Mutant.of(
        std,
        "generator_terms",
        lambda *given, OF=std.generator_terms, **more: {"gan": -OF(*given, **more)["gan"]},
        check_adversary,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
