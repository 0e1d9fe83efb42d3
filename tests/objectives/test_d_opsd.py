"""Self-distillation of a context on the student's own states, against closed forms, and made wrong on purpose."""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

import pytest
import torch
from closed_forms import COVARIANCE, PROCESSES, believed, close, processes
from flow_maps import gaussian_batch, knowing_roles
from mutants import Mutant
from torch import Tensor
from trajectories import loss_and_slope

from fastgen.models.calls import look
from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Batch, Needs
from fastgen.objectives.regression import d_opsd
from fastgen.objectives.regression.d_opsd import SelfDistillation
from fastgen.process import ROWS, Prediction, Process, even_grid
from fastgen.sampling.sampler import ode

FLOW = PROCESSES["flow"]
BIAS = torch.tensor([0.3, -0.2], dtype=torch.float64)
CHANGE = torch.tensor([1.0, -0.5], dtype=torch.float64)
GRID = even_grid(4, shift=2.0)


class Answering(torch.nn.Module):
    """Says of N(label CHANGE, COVARIANCE) what is true, but for a bias of x0; keeps what it was asked at."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.scalars = process, ()
        self.bias = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        self.seen.append((x_t, t))
        mean = cond.batched["class_labels"].double()[:, None] * CHANGE
        alpha, sigma = self.process.alpha(t)[0], self.process.sigma(t)[0]
        x0 = mean + believed(torch.zeros(2).double(), COVARIANCE, x_t - alpha * mean, alpha, sigma)
        return Prediction.of_x0(self.process, x_t, t, x0 + self.bias)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        raise ValueError("a distilled model is not guided")

    def tap(self, x_t: Tensor, t: Tensor, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        raise ValueError("it has no layers")


def asked(label: int, size: int) -> Conditioning:
    return Conditioning(size, {"class_labels": torch.full((size,), label)})


def case(process: Process, objective: SelfDistillation, *, seed: int = 0) -> tuple[Roles, Batch]:
    """Asked for 0 the student, for 1 its teacher."""
    roles = knowing_roles(objective, process, lambda *given: None)
    members = {role: Answering(process) for role in ("generator", "target", "real_score")}
    batch = gaussian_batch(seed=seed)
    batch.real, batch.cond, batch.changed = None, asked(0, batch.size), asked(1, batch.size)
    return Roles(roles.members | members, Plan([GRID], sampler="ode")), batch


def check_pull(process: Process, ema: float) -> None:
    """By hand at each stop: 2^-j over the weights' mean times what both say apart at the student's own x_t."""
    depths = set()
    for seed in range(8):
        objective = SelfDistillation(ema=ema, space="x0")
        roles, batch = case(process, objective, seed=seed)
        noise = batch.script[0]
        roles.generator.bias.data.copy_(BIAS)
        loss, slope = loss_and_slope(objective, roles, batch)
        x_t, t = roles.generator.seen[-1]
        depth = int((GRID - t[0]).abs().argmin())
        teacher = roles.real_score if ema == 1 else roles.target
        bias = torch.zeros(2).double() if ema == 1 else (1 - ema) * BIAS  # its average, after one update
        close(teacher.bias.detach(), bias, tolerance=1e-4)
        generator = Answering(process)
        generator.bias.data.copy_(BIAS)
        state = process.prior(noise, batch.full(1.0))
        for here, following in pairwise(GRID[: depth + 1]):
            state = generator(state, batch.full(here), batch.cond).at(batch.full(following)).detach()
        close(x_t, state, tolerance=1e-5)
        gap = generator(state, t, batch.cond).x0 - Answering(process)(state, t, asked(1, batch.size)).x0 - bias
        weight = 0.5**depth / (1 + 0.5 + 0.25 + 0.125) * 4
        assert loss == pytest.approx(weight * gap.square().mean().item(), rel=1e-4)
        close(slope, weight * gap.mean(dim=0).detach(), tolerance=1e-4)
        depths.add(depth)
    assert len(depths) >= 3


def check_fixed_point(process: Process) -> None:
    """A student that says plainly what the teacher says in its context is left alone, and samples the context's."""
    objective = SelfDistillation(ema=1.0)
    roles, batch = case(process, objective)
    batch.cond, noise = asked(1, batch.size), batch.script[0]
    loss, slope = loss_and_slope(objective, roles, batch)
    assert loss < 1e-12
    assert slope.norm() < 1e-6
    times = even_grid(64).tolist()
    close(ode(roles.generator, noise, batch.cond, times), ode(roles.real_score, noise, asked(1, 64), times))


@processes
@pytest.mark.parametrize("ema", [0.75, 1.0])
def test_the_student_is_pulled_to_the_context_where_it_stops_itself(process: Process, ema: float):
    check_pull(process, ema)


@processes
def test_a_student_that_has_learned_its_context_is_left_alone(process: Process):
    check_fixed_point(process)


def test_what_it_needs():
    assert SelfDistillation(context="a {} of clay").needs == Needs(context="a {} of clay", target=True)
    assert SelfDistillation(ema=1.0).needs.real_score
    assert SelfDistillation(ema=0.0).needs.reads == ()


@pytest.mark.parametrize("context", ["{}", "a watercolour", "{} and {}", " {} "])
def test_a_context_that_says_nothing_or_has_no_place_for_the_prompt_is_refused(context: str):
    with pytest.raises(ValueError, match=r"give words around one \{\}"):
        SelfDistillation(context=context)


@pytest.mark.parametrize(("settings", "words"), [({"falloff": 0.0}, "falloff is 0"), ({"ema": 1.5}, "ema is 1.5")])
def test_settings_that_nothing_could_be_learned_with_are_refused(settings: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        SelfDistillation(**settings)


def test_a_batch_without_context_says_what_asks_for_it():
    with pytest.raises(ValueError, match="set context="):
        _ = gaussian_batch().context


def elsewhere(roles: Roles, batch: Batch, grid: Tensor, *, depth: int) -> tuple[Tensor, Tensor]:
    x_t, t = SAMPLED(roles, batch, grid, depth=depth)
    return roles.process.renoise(x_t, t, batch.noise()), t


SAMPLED, GENERATOR, FOLLOW = d_opsd.sampled, SelfDistillation.generator, d_opsd.follow
PULL = partial(check_pull, FLOW, 0.75)
MUTANTS = {
    "detached generator": Mutant.of(d_opsd, "through", look, PULL),
    "teacher asked plainly": Mutant.of(
        d_opsd, "look", lambda model, x, t, cond: look(model, x, t, asked(0, len(x))), PULL
    ),
    "noised states": Mutant.of(d_opsd, "sampled", elsewhere, PULL),
    "teacher stands still": Mutant.of(d_opsd, "follow", lambda *given: None, PULL),
    "another row": Mutant.of(d_opsd, "ROWS", {"x0": ROWS["eps"]}, PULL),
    "the student is its own teacher": Mutant.of(d_opsd, "target_of", lambda roles, ema: roles.generator, PULL),
    "stops alike": Mutant.of(SelfDistillation, "falloff", property(lambda self: 1.0, lambda self, value: None), PULL),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
