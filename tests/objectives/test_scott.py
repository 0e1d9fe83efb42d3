"""SCott against LCM, which it is without noise, and against what noise costs between Gaussians; mutants."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from any_times import Linear
from average_velocities import C
from closed_forms import PROCESSES, close, only, processes
from flow_maps import VALUES, clean_at, gaussian_batch, knowing_roles, mapped
from mutants import Mutant
from trajectories import loss_and_slope

from fastgen.objectives import Needs
from fastgen.objectives.parts.flow_map import cells, drawn_cell, edges_of
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance
from fastgen.objectives.trajectory import scott
from fastgen.objectives.trajectory.lcm import LatentConsistency
from fastgen.objectives.trajectory.scott import StochasticConsistency
from fastgen.process import Flow, Process

FLOW, NO_GAN = Flow(), GAN(0.0)
PLAIN = StochasticConsistency(teacher_guidance=Guidance(), grid=8, substeps=1, eta=0.0, ema=0.0, gan=NO_GAN)


def check_it_is_lcm_without_noise(process: Process) -> None:
    lcm = LatentConsistency(teacher_guidance=Guidance(), grid=8, ema=0.0, distance="l2")
    found = []
    for objective in (PLAIN, lcm):
        roles = knowing_roles(objective, process, clean_at(0.0))
        roles.generator.bias.data.copy_(C)
        found.append(loss_and_slope(objective, roles, gaussian_batch()))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-9)
    close(found[0][1], found[1][1])
    assert found[0][1].norm() > 1e-4


def check_what_noise_costs(eta: float) -> None:
    """The exact map pays for gains that are lost and for the noise: by directions of the covariance."""
    objective, size = replace(PLAIN, grid=2, eta=eta), 4096
    roles = knowing_roles(objective, FLOW, clean_at(0.0))
    loss, _ = loss_and_slope(objective, roles, gaussian_batch(size=size))
    drawn = gaussian_batch(size=size)
    expected = []
    for t, r in zip(*drawn_cell(cells(edges_of(roles, drawn), 2), drawn, FLOW), strict=True):
        at_t, at_r = (1 - t) ** 2 * VALUES + t**2, (1 - r) ** 2 * VALUES + r**2
        q = eta * r / t * (t**2 - ((1 - t) / (1 - r)) ** 2 * r**2).sqrt()
        gain = ((1 - t) * (1 - r) * VALUES + (r**2 - q**2).sqrt() * t) / at_t
        clean = (VALUES / at_r).sqrt()
        expected.append(((VALUES / at_t).sqrt() - gain * clean) ** 2 * at_t + q**2 * clean**2)
        assert (gain <= (at_r / at_t).sqrt() + 1e-12).all(), "the student becomes narrower"
    assert loss == pytest.approx(torch.stack(expected).mean().item(), rel=0.06)


def check_clean_samples_are_judged() -> None:
    objective = replace(PLAIN, gan=GAN(weight=0.4, kind="hinge", times=only(0.5)))
    roles = knowing_roles(objective, FLOW, clean_at(0.0))
    roles.members["discriminator"] = Linear()
    with roles.training(("generator",)):
        term = objective.generator(roles, gaussian_batch())["gan"]
        (slope,) = torch.autograd.grad(term, roles.generator.bias)
    drawn = gaussian_batch()
    t, _ = drawn_cell(cells(edges_of(roles, drawn), 8), drawn, FLOW)
    x0 = mapped(FLOW, FLOW.renoise(drawn.x0, t, drawn.script[0]), t, 0 * t)
    close(term, -0.4 * (0.5 * x0 + 0.5 * drawn.script[1])[:, 0].mean(), tolerance=1e-5)
    close(slope, torch.stack([0.4 * 0.5 * t.mean(), 0 * t.mean()]), tolerance=1e-5)


def check_substeps() -> None:
    """Three sub-steps come nearer to the exact neighbour than one."""
    found = []
    for substeps in (1, 3):
        objective = replace(PLAIN, grid=1, substeps=substeps)
        found.append(loss_and_slope(objective, knowing_roles(objective, FLOW, clean_at(0.0)), gaussian_batch())[0])
    assert found[1] < 0.5 * found[0]


@processes
def test_it_is_lcm_without_noise(process: Process):
    check_it_is_lcm_without_noise(process)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_what_noise_costs(eta: float):
    check_what_noise_costs(eta)


def test_clean_samples_are_judged():
    check_clean_samples_are_judged()


def test_substeps_come_nearer():
    check_substeps()


def test_what_it_needs():
    own = Needs(images=True, real_score=True, null=True, target=True)
    told = Needs(scalars={"generator": {"w"}, "target": {"w"}})
    assert StochasticConsistency().needs == own | told
    assert StochasticConsistency(gan=NO_GAN).cycle == (("generator",),)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(StochasticConsistency, eta=1.5), "eta 1.5"),
        (partial(StochasticConsistency, substeps=0), "substeps 0"),
        (partial(StochasticConsistency, ema=1.0), "ema is 1"),
        (partial(StochasticConsistency, gan=GAN(1.0, joint=True)), "gan.joint looks where"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


STEPS = scott.stochastic
MUTANTS = {
    "no noise": Mutant.of(
        scott,
        "stochastic",
        lambda *given, **named: STEPS(*given, **{**named, "eta": 0.0}),
        partial(check_what_noise_costs, 1.0),
    ),
    "all noise": Mutant.of(
        scott,
        "stochastic",
        lambda *given, **named: STEPS(*given, **{**named, "eta": 1.0}),
        partial(check_it_is_lcm_without_noise, PROCESSES["vp"]),
    ),
    "one sub-step": Mutant.of(
        scott, "stochastic", lambda *given, **named: STEPS(*given, **{**named, "substeps": 1}), check_substeps
    ),
    "noisy samples are judged": Mutant.of(
        scott, "Landing", lambda x, s, t, x0: LANDING(x, 0.5 * t, t, x0), check_clean_samples_are_judged
    ),
    "to the neighbour alone": Mutant.of(
        scott,
        "jumps",
        lambda *given, **named: JUMPS(*given[:3], given[4], given[4], **named),
        partial(check_it_is_lcm_without_noise, FLOW),
    ),
}
LANDING, JUMPS = scott.Landing, scott.jumps


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
