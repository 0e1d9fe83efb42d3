"""The student's own loop, which training, sampling and proofs share, and the plan that it keeps to."""

from itertools import islice

import pytest
import torch
from closed_forms import scripted
from torch import Tensor, nn

from fastgen.models.calls import NONE, Scalars
from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan, Sampler, sample, scalars_at, walk
from fastgen.objectives.parts.rollout import land
from fastgen.process import Flow, Prediction, Process, Time, even_grid
from fastgen.process.retold import retold
from fastgen.proofs import bed
from fastgen.proofs.analytic import ExactDenoiser
from fastgen.proofs.bed import DATA, PROCESSES

TIMES = [1.0, 0.7, 0.4, 0.15]
SAMPLERS = pytest.mark.parametrize("sampler", ["renoise", "ode"])


class Counting(nn.Module):
    """An exact denoiser that counts its calls and moves its belief by the sum of what it is told."""

    def __init__(self, process: Process, scalars: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.exact, self.scalars, self.calls = ExactDenoiser(process, DATA["five"]), scalars, 0
        self.process, self.guide = process, self.exact.guide

    def forward(self, x_t: Tensor, t: Time, cond: Conditioning, scalars: Scalars = NONE) -> Prediction:
        self.calls += 1
        shift = sum((value[:, None] for value in scalars.values()), torch.zeros(len(t), 1))
        return Prediction.of_x0(self.process, x_t, t, self.exact(x_t, t, cond).x0 + shift)


def noises(count: int = 6) -> list[Tensor]:
    return list(torch.randn(len(TIMES), count, 2, generator=torch.Generator().manual_seed(1)))


def cond() -> Conditioning:
    return DATA["five"].cond(torch.arange(6) % 2)


def full(t: float) -> Tensor:
    return torch.full((6,), t, dtype=torch.float64)


@SAMPLERS
@pytest.mark.parametrize("name", PROCESSES)
def test_the_samples_are_those_of_the_loop_written_out(name: str, sampler: Sampler) -> None:
    model, process, draws = Counting(PROCESSES[name], ("s",)), PROCESSES[name], noises()
    told = scalars_at(TIMES, ("s",), sampler=sampler, guidance=None)
    x = process.prior(draws[0], full(TIMES[0]))
    for i, t in enumerate(TIMES):
        beliefs = [model(x, full(t), c, {"s": full(told[t]["s"])}) for c in (cond(), cond().unconditional)]
        belief, last = model.guide(beliefs[0], beliefs[1], 2.5), i + 1 == len(TIMES)
        s = full(0.0 if last else TIMES[i + 1])
        x = belief.at(s) if sampler == "ode" else belief.x0 if last else process.renoise(belief.x0, s, draws[i + 1])
    found = sample(model, iter(draws).__next__, cond(), TIMES, sampler=sampler, guidance=2.5, scalars=told)
    torch.testing.assert_close(found, x, rtol=1e-6, atol=1e-6)  # a pair of guided calls goes as one


@SAMPLERS
def test_whoever_leaves_at_a_stop_has_not_paid_for_it(sampler: Sampler) -> None:
    for depth, t in enumerate([*TIMES, 0.0]):
        model, waiting = Counting(Flow()), iter(noises())
        stop = next(islice(walk(model, waiting.__next__, cond(), TIMES, sampler=sampler), depth, None))
        drawn = 1 if sampler == "ode" else min(depth + 1, len(TIMES))
        assert (model.calls, len(TIMES) - len(list(waiting))) == (depth, drawn)
        assert torch.equal(stop.t, full(t))
        assert (stop.belief is None) == (depth == 0)


@SAMPLERS
def test_training_lands_where_the_sampler_ends(sampler: Sampler) -> None:
    model, draws, grid = Counting(Flow()), noises(), torch.tensor(TIMES, dtype=torch.float64)
    roles, depths = Roles({"generator": model}, Plan([grid], sampler)), set()
    for seed in range(24):
        batch, before = scripted(*draws, seed=seed), model.calls
        landing = land("backward_simulation", roles, batch)
        depths.add(depth := model.calls - before - 1)
        stops = list(walk(model, iter(draws).__next__, batch.cond, TIMES, sampler=sampler))
        assert torch.equal(landing.t, stops[depth].t)
        assert torch.equal(landing.x0, stops[depth + 1].belief.x0)
    assert depths == {0, 1, 2, 3}


@SAMPLERS
def test_proofs_judge_what_the_sampler_draws(sampler: Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bed, "SAMPLES", 6)
    model, on = Counting(Flow()), bed.Bed("flow", classes=True)
    cond, draws = on.cond(on.labels(6, bed.seeded(0))), [bed.noise(seed, 6) for seed in (2, 4, 5, 6)]
    drawn = sample(model, iter(draws).__next__, cond, even_grid(4).tolist(), sampler=sampler)
    assert torch.equal(bed.generated(model, on, even_grid(4), sampler)[-1], drawn)
    assert torch.equal(
        bed.integrated(on, even_grid(4)), sample(on.real, lambda: draws[0], cond, even_grid(4).tolist(), sampler="ode")
    )


def test_a_plan_moves_with_the_process_that_its_network_is_retold_as() -> None:
    process = retold("flow", PROCESSES["vp"])
    plan = Plan([even_grid(4), even_grid(2)], boundary=0.6).on(process)
    for grid, native in zip(plan.grids, (even_grid(4), even_grid(2)), strict=True):
        torch.testing.assert_close(process.logsnr(grid), PROCESSES["vp"].logsnr(native))
    torch.testing.assert_close(process.logsnr(full(plan.boundary)), PROCESSES["vp"].logsnr(full(0.6)))
    told = plan.telling(("w",), guidance=5.0).scalars
    assert set(told) == {t for grid in plan.grids for t in grid.tolist()}
    assert {values["w"] for values in told.values()} == {0.25}
    assert plan.telling((), guidance=5.0).scalars == {}
