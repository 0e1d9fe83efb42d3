"""DisBack's degradation: its fixed point is the exact score of the first student, whatever its step."""

import pytest
import torch
from closed_forms import OTHER_FACTOR, OTHER_MEAN, PLANE, PROCESSES, close, only, processes, streams
from flow_maps import Knowing, gaussian_batch
from mutants import Mutant
from trajectories import loss_and_slope

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives.parts.rollout import backward_simulation, predicted
from fastgen.objectives.regression import degradation
from fastgen.objectives.regression.degradation import Degradation
from fastgen.process import ROWS, Flow, Process, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, Mixture
from fastgen.proofs.toy import toy_batch, toy_roles

FIRST = Mixture(OTHER_MEAN[None], (OTHER_FACTOR @ OTHER_FACTOR.T)[None])
"""What the first student samples in one step."""


def check_fixed_point(process: Process) -> None:
    """No slope at the exact score of the student's samples, where the loss is the mean variance of x0 given x_t."""
    objective = Degradation(times=only(0.5), space="x0")
    generator = Knowing(process, lambda p, x, t, _: ExactDenoiser(p, FIRST)(x, t, FIRST.uncond(len(x))), row=ROWS["x0"])
    student = AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR)
    roles = Roles({"generator": generator, "real_score": student}, Plan([even_grid(1)]))
    loss, slope = loss_and_slope(objective, roles, gaussian_batch(size=40_000))
    t = torch.tensor(0.5, dtype=torch.float64)
    alpha, sigma, own = process.alpha(t), process.sigma(t), FIRST.covariances[0]
    left = own - alpha**2 * own @ torch.linalg.solve(alpha**2 * own + sigma**2 * torch.eye(2), own)
    close(loss, float(left.trace() / 2), tolerance=0.02)
    assert slope.norm() < 0.02
    generator.bias.data.fill_(0.1)
    _, slope = loss_and_slope(objective, roles, gaussian_batch(size=40_000))
    close(slope, generator.bias.detach(), tolerance=0.02)


@processes
def test_the_exact_score_of_the_students_samples_stays(process: Process):
    check_fixed_point(process)


@pytest.mark.parametrize("sampler", ["renoise", "ode"])
def test_of_several_steps_samples_are_those_of_backward_simulation(sampler: str):
    roles = toy_roles(Flow(), PLANE, [even_grid(3)], updates=20, sampler=sampler)
    for seed in range(6):  # of all depths
        own, theirs = (toy_batch(PLANE, 8, *streams(seed).values()) for _ in range(2))
        x0 = predicted(roles.generator, roles, own)
        assert torch.equal(x0, backward_simulation(roles, theirs).x0)
        assert not x0.requires_grad


MUTANTS = {
    "of its own samples": (degradation, "predicted", lambda _, roles, batch: roles.generator(*starts(roles, batch)).x0),
    "of the data": (degradation, "predicted", lambda _, roles, batch: batch.x0),
}


def starts(roles: Roles, batch: object) -> tuple:
    return batch.noise(), batch.full(1.0), batch.cond


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_degradation_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    Mutant([MUTANTS[name]], lambda: check_fixed_point(PROCESSES["flow"])).must_be_noticed(monkeypatch)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(ValueError, match="a share of rows"):
        Degradation(dropout=1.0)
