"""Training on a distilled model against its closed form, and made wrong on purpose."""

from functools import partial

import pytest
import torch
from closed_forms import OTHER_MEAN, PROCESSES, REAL, close, only, processes
from flow_maps import Knowing, clean_at, gaussian_batch, knowing_roles
from mutants import Mutant
from trajectories import loss_and_slope

from fastgen.models.calls import look
from fastgen.objectives.regression import finetune
from fastgen.objectives.regression.finetune import Finetune
from fastgen.process import ROWS, Prediction, Process, even_grid
from fastgen.proofs.analytic import ExactDenoiser, Mixture

FLOW = PROCESSES["flow"]
BEFORE = Mixture(OTHER_MEAN[None], REAL.covariances)


def between(d: float) -> object:
    """What a network says that stands between the images and the distilled model."""

    def belief(process: Process, x: torch.Tensor, t: torch.Tensor, scalars: object) -> Prediction:
        images, before = (ExactDenoiser(process, data)(x, t, REAL.uncond(len(t))) for data in (REAL, BEFORE))
        return images.lerp(before, d / (1 + d))

    return belief


def check_fixed_point(process: Process, d: float) -> None:
    """(E[x0 | x_t] + d x0_distilled) / (1 + d): no gradient, by as many samples as average out."""
    objective = Finetune(drift=d, times=only(0.5), space="x0")
    roles = knowing_roles(objective, process, between(d), row=ROWS["x0"])
    roles.members["real_score"] = ExactDenoiser(process, BEFORE)
    _, slope = loss_and_slope(objective, roles, gaussian_batch(size=40_000))
    assert slope.norm() < 0.02
    roles.generator.bias.data.fill_(0.1)
    _, slope = loss_and_slope(objective, roles, gaussian_batch(size=40_000))
    close(slope, (1 + d) * roles.generator.bias.detach(), tolerance=0.02)


def check_terms() -> None:
    """Both mean squares in the row, of the same noised samples; the drift times its weight."""
    objective = Finetune(drift=3.0, times=only(0.5), space="difference")
    roles = knowing_roles(objective, FLOW, clean_at(0.0), row=ROWS["difference"])
    roles.members["real_score"] = ExactDenoiser(FLOW, BEFORE)
    batch = gaussian_batch()
    eps, t = batch.script[0], batch.full(0.5)
    x_t = FLOW.renoise(batch.x0, t, eps)
    said, before = (roles[role](x_t, t, batch.cond).velocity for role in ("generator", "real_score"))
    with roles.training(("generator",)):
        terms = objective.generator(roles, batch)
    close(terms["denoise"], (said - (eps - batch.x0)).square().mean(), tolerance=1e-5)
    close(terms["drift"], 3 * (said - before).square().mean(), tolerance=1e-5)
    assert terms["drift"].requires_grad


@processes
@pytest.mark.parametrize("drift", [0.5, 3.0])
def test_the_fixed_point_lies_between_the_images_and_the_distilled_model(process: Process, drift: float):
    check_fixed_point(process, drift)


def test_the_terms_are_mean_squares_of_the_same_samples():
    check_terms()


def test_an_unchanged_model_has_no_drift_and_no_pull_back():
    objective = Finetune()
    roles = knowing_roles(objective, FLOW, clean_at(0.0))
    roles.members["real_score"] = Knowing(FLOW, clean_at(0.0))
    with roles.training(("generator",)):
        drift = objective.generator(roles, gaussian_batch())["drift"]
        (slope,) = torch.autograd.grad(drift, roles.generator.bias)
    assert drift.item() == 0
    assert torch.equal(slope, torch.zeros_like(slope))


def test_it_looks_where_the_student_stops():
    grids = [even_grid(2), even_grid(4, shift=3.0)]
    roles = knowing_roles(Finetune(), FLOW, clean_at(0.0), grids=grids)
    seen: list[torch.Tensor] = []
    roles.generator.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    for seed in range(6):
        Finetune().generator(roles, gaussian_batch(seed=seed))
    found = {round(time, 6) for time in torch.cat(seen).tolist()}
    assert found == {round(time, 6) for time in torch.cat(grids).tolist()}


def test_without_drift_nobody_else_is_asked():
    assert not Finetune(drift=0.0).needs.real_score
    roles = knowing_roles(Finetune(drift=0.0), FLOW, clean_at(0.0))
    del roles.members["real_score"]
    assert set(Finetune(drift=0.0).generator(roles, gaussian_batch())) == {"denoise"}
    with pytest.raises(ValueError, match="drift is -1"):
        Finetune(drift=-1.0)


MUTANTS = {
    "detached generator": Mutant.of(finetune, "through", look, check_terms),
    "another noise for the drift": Mutant.of(
        finetune, "look", lambda model, x, t, cond: look(model, x.flip(0), t, cond), check_terms
    ),
    "another row": Mutant.of(finetune, "ROWS", {name: ROWS["x0"] for name in ROWS}, check_terms),
    "weight of one": Mutant.of(Finetune, "drift", property(lambda self: 1.0, lambda self, value: None), check_terms),
    "away from the distilled model": Mutant.of(
        Finetune,
        "generator",
        lambda self, roles, batch: {k: v * (1 if k == "denoise" else -1) for k, v in TERMS(self, roles, batch).items()},
        partial(check_fixed_point, FLOW, 0.5),
    ),
}
TERMS = Finetune.generator


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
