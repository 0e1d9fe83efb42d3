"""MDT-dist against exact mean velocities of Gaussians, and made wrong on purpose."""

from dataclasses import replace

import pytest
import torch
from closed_forms import OTHER_FACTOR, OTHER_MEAN, PROCESSES, REAL, believed, close, only
from flow_maps import clean_at, gaussian_batch, knowing_roles
from mutants import Mutant
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.objectives import Batch
from fastgen.objectives.parts.derivative import Derivative, along
from fastgen.objectives.parts.ops import Noised, surrogate
from fastgen.objectives.parts.solvers import Field, Guidance
from fastgen.objectives.trajectory import mdt_dist
from fastgen.objectives.trajectory.mdt_dist import MarginalDataTransport
from fastgen.proofs.analytic import ExactDenoiser, Mixture

FLOW = PROCESSES["flow"]
BIAS = torch.tensor([0.3, -0.2], dtype=torch.float64)
EXACT = MarginalDataTransport(derivative_step=None)
OTHER = Mixture(OTHER_MEAN[None], (OTHER_FACTOR @ OTHER_FACTOR.T)[None])
HALF = replace(EXACT, times=only(0.5))


def case(objective: MarginalDataTransport, *, seed: int = 0) -> tuple[Roles, Batch]:
    """A generator that knows the mean velocity to the data."""
    return knowing_roles(objective, FLOW, clean_at(0.0)), gaussian_batch(seed=seed)


def terms(objective: MarginalDataTransport, roles: Roles, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
    """Value and slope by the bias of each term."""
    with roles.training(("generator",)):
        found = objective.generator(roles, batch)
        assert all(term.requires_grad for term in found.values()), "a term does not reach the generator"
        bias = roles.generator.bias
        return {name: (term, torch.autograd.grad(term, bias, retain_graph=True)[0]) for name, term in found.items()}


def check_fixed_point() -> None:
    """The mean velocity has no loss; one that is wrong by c is told c in both terms, each with a slope of c."""
    for seed in range(2):
        roles, batch = case(EXACT, seed=seed)
        loss, slope = loss_and_slope(EXACT, roles, batch)
        assert loss < 1e-9
        assert slope.norm() < 1e-6
    objective = replace(EXACT, distillation=2.0)
    roles, batch = case(objective)
    roles.generator.bias.data.copy_(BIAS)
    found = terms(objective, roles, batch)
    close(found["matching"][0], BIAS.square().mean())
    close(found["matching"][1], BIAS)
    close(found["distillation"][1], 2 * BIAS)


def mean_velocity(x: Tensor, t: float) -> Tensor:
    """(x - X_{t -> 0}(x)) / t of REAL."""
    return clean_at(0.0)(FLOW, x, torch.full((len(x),), t).double(), {}).velocity


def check_own_samples() -> None:
    """What is said of one-step samples, half noised, by hand against another teacher; samples move to its data."""
    roles, batch = case(HALF)
    roles.members["real_score"] = ExactDenoiser(FLOW, OTHER)
    z, eps = batch.script[1], batch.script[2]
    _, slope = terms(HALF, roles, batch)["distillation"]
    x = 0.5 * (z - mean_velocity(z, 1.0)) + 0.5 * eps
    half = torch.tensor(0.5, dtype=torch.float64)
    v = 2 * (x - believed(OTHER_MEAN, OTHER.covariances[0], x, half, half))
    h = 1e-4
    rate = (mean_velocity(x + h * v, 0.5 + h) - mean_velocity(x - h * v, 0.5 - h)) / (2 * h)
    close(slope, (mean_velocity(x, 0.5) - (v - 0.5 * rate)).mean(dim=0), tolerance=1e-4)
    assert slope @ (OTHER_MEAN - REAL.means[0]) > 0, "samples have to leave the mean of their own"


def check_normaliser() -> None:
    """Of du/dt remains du/dt / (|du/dt| + c), so that the exact map is told t times what is missing."""
    objective = replace(HALF, normaliser=0.5, distillation=0.0)
    roles, batch = case(objective)
    x = 0.5 * batch.x0 + 0.5 * batch.script[0]
    loss, _ = terms(objective, roles, batch)["matching"]
    v = roles.real_score(x, batch.full(0.5), batch.cond).velocity
    rate = 2 * (v - mean_velocity(x, 0.5))  # the identity u = v - t du/dt
    left = rate / (rate.norm(dim=1, keepdim=True) + 0.5)
    close(loss, (0.5 * (rate - left)).square().mean(), tolerance=1e-5)
    assert loss > 1e-3


def test_the_mean_velocity_is_the_fixed_point_of_both():
    check_fixed_point()


def test_its_own_samples_are_moved_by_what_is_said_wrong_of_them():
    check_own_samples()


def test_a_normaliser_moves_the_fixed_point():
    check_normaliser()


def test_without_distillation_nothing_is_sampled():
    objective = replace(EXACT, distillation=0.0)
    roles, batch = case(objective)
    assert set(objective.generator(roles, batch)) == {"matching"}
    assert len(batch.script) == 7


def test_a_finite_step_is_near_the_derivative():
    for step, apart in ((0.01, 1e-6), (0.1, 1e-3)):
        objective = replace(HALF, derivative_step=step)
        loss, _ = loss_and_slope(objective, *case(objective))
        assert loss < apart


@pytest.mark.parametrize("settings", [{"distillation": -1.0}, {"normaliser": 0.0}])
def test_settings_that_lead_nowhere_are_refused(settings: dict[str, float]):
    with pytest.raises(ValueError, match="need a weight of at least 0, and a length above 0 or null"):
        MarginalDataTransport(**settings)


def test_what_it_needs():
    assert str(MarginalDataTransport().needs) == "images, process=flow, real_score"
    assert str(EXACT.needs) == "fine_times, images, process=flow, real_score"
    assert MarginalDataTransport(teacher_guidance=Guidance(1.0, 5.0, told=True)).needs.scalars_of("generator") == ("w",)


def backwards(*given: object, **named: object) -> Derivative:
    found = along(*given, **named)
    return replace(found, rate=-found.rate)


def later(self: Field, x_t: Tensor, t: Tensor) -> object:
    return FIELD(self, x_t, (t + 0.2).clamp(max=1.0))


FIELD, OF = Field.__call__, Noised.of
MUTANTS = {
    "against time": Mutant.of(mdt_dist, "along", backwards, check_fixed_point),
    "detached generator": Mutant.of(mdt_dist, "through", look, check_fixed_point),
    "samples pushed back": Mutant.of(mdt_dist, "surrogate", lambda x, grad: surrogate(x, -grad), check_own_samples),
    "half as far": Mutant.of(mdt_dist, "surrogate", lambda x, grad: surrogate(x, grad / 2), check_fixed_point),
    "teacher asked elsewhere": Mutant.of(Field, "__call__", later, check_fixed_point),
    "samples noised by their own noise": Mutant.of(
        mdt_dist, "Noised", type("N", (), {"of": lambda p, x, t, eps: OF(p, x, t, 0 * eps)}), check_own_samples
    ),
    "no normaliser": Mutant.of(
        MarginalDataTransport, "normaliser", property(lambda self: None, lambda self, value: None), check_normaliser
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
