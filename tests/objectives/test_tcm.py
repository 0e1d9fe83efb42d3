"""TCM against closed forms, and made wrong on purpose."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from average_velocities import C
from closed_forms import PROCESSES, close, processes
from flow_maps import Knowing, clean_at, gaussian_batch, knowing_roles, mapped
from mutants import Mutant
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.calls import look, through
from fastgen.models.roles import Roles
from fastgen.objectives import Needs
from fastgen.objectives.parts.curricula import Even, Ramp, Ratio
from fastgen.objectives.parts.flow_map import edges_of
from fastgen.objectives.trajectory import tcm
from fastgen.objectives.trajectory.tcm import TruncatedConsistency
from fastgen.process import Flow, Process, Uniform
from fastgen.seeds import uniform

FLOW = Flow()
B = torch.tensor([-0.1, 0.4], dtype=torch.float64)
OBJECTIVE = TruncatedConsistency(
    truncation=0.5, curriculum=Ratio(q=2.0, times=Uniform()), boundary=0.3, at_boundary=0.4, distance="l2"
)


def biased(process: Process, *, before: Tensor) -> Roles:
    """A consistency model that is wrong by C, and one of the stage before that is wrong by another bias."""
    roles = knowing_roles(OBJECTIVE, process, clean_at(0.0))
    roles.generator.bias.data.copy_(C)
    frozen = Knowing(process, clean_at(0.0))
    frozen.bias.data.copy_(before)
    roles.members["real_score"] = frozen.requires_grad_(False)
    return roles


def check_who_is_agreed_with() -> None:
    """Below t' and at it the stage before, above it the generator itself; value and gradient by plain algebra."""
    roles, drawn = biased(FLOW, before=B), gaussian_batch()
    near = OBJECTIVE.curriculum.neighbours(FLOW, edges_of(roles, drawn), drawn)
    edge = uniform(drawn.rng, drawn.size) < 0.4
    lowest = torch.full_like(near.t, 1 / 3)  # where t / (1 - t) = 0.5
    t, r = torch.where(edge, lowest, near.t.clamp(min=1 / 3)), torch.where(edge, lowest, near.r)
    loss, slope = loss_and_slope(OBJECTIVE, roles, gaussian_batch())
    x0, eps = drawn.x0, drawn.script[0]

    def clean(t: Tensor, wrong: Tensor) -> Tensor:
        x_t = (1 - t)[:, None] * x0 + t[:, None] * eps
        return mapped(FLOW, x_t, t, 0 * t) - t[:, None] * wrong

    below = edge | (r < 1 / 3)
    gap = clean(t, C) - torch.where(below[:, None], clean(r, B), clean(r, C))
    level = (t / (1 - t)).clamp(max=80)
    weight = torch.where(edge, 0.3, 1 / (level - r / (1 - r)))
    assert min(edge.sum(), (below & ~edge).sum(), (~below).sum(), (near.t < 1 / 3).sum()) > 4
    assert loss == pytest.approx((weight * gap.square().mean(dim=1)).mean().item(), rel=1e-6)
    close(slope, -(weight * t)[:, None].mul(gap).mean(dim=0), tolerance=1e-5)


def check_agreement_at_the_boundary(process: Process) -> None:
    """Nothing to pay there for one who says what the stage before says, at a noise level that all processes have."""
    roles, batch = biased(process, before=C), gaussian_batch()
    asked: list[Tensor] = []
    roles["real_score"].register_forward_pre_hook(lambda module, given: asked.append(given[1]))
    terms = OBJECTIVE.generator(roles, batch)
    assert terms["boundary"] < 1e-12
    lowest = process.time_of(torch.tensor([4.0], dtype=torch.float64).log())  # alpha^2 / sigma^2
    level = process.sigma(lowest) / process.alpha(lowest)
    close(level, torch.full_like(level, 0.5), tolerance=1e-4)
    shared = (asked[0] - lowest).abs() < 1e-9
    assert 0.2 < shared.double().mean() < 0.6


def test_who_is_agreed_with():
    check_who_is_agreed_with()


@processes
def test_agreement_at_the_boundary(process: Process):
    check_agreement_at_the_boundary(process)


def test_what_it_needs():
    assert TruncatedConsistency().needs == Needs(images=True, real_score=True, succeeds=True, noise=1.0)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(TruncatedConsistency, curriculum=Ramp()), "by an average"),
        (partial(TruncatedConsistency, truncation=0.0), "truncation is 0"),
        (partial(TruncatedConsistency, at_boundary=0.0), "at_boundary 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def test_a_grid_whose_target_is_the_generator_itself_is_taken():
    assert not TruncatedConsistency(curriculum=Even(18, decay=0.0)).needs.target


def exchanged(model: object, x: Tensor, t: Tensor, cond: object) -> object:
    wrong = Knowing(FLOW, clean_at(0.0))
    wrong.bias.data.copy_(C + B - model.bias)
    return look(wrong, x, t, cond)


TIME_OF = Flow.time_of
MUTANTS = {
    "detached generator": Mutant.of(tcm, "through", look, check_who_is_agreed_with),
    "a target with gradient": Mutant.of(tcm, "look", through, check_who_is_agreed_with),
    "each asked in the other's place": Mutant.of(tcm, "look", exchanged, check_who_is_agreed_with),
    "truncated elsewhere": Mutant.of(
        Flow, "time_of", lambda self, logsnr: TIME_OF(self, logsnr + 1), check_who_is_agreed_with
    ),
    "one weight": Mutant.of(tcm, "apart", lambda process, t, r: torch.ones_like(t), check_who_is_agreed_with),
    "another model at the boundary": Mutant.of(
        tcm, "look", exchanged, partial(check_agreement_at_the_boundary, PROCESSES["flow"])
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
