"""Spikes are found on the device; the turn is warned of, skipped or ends the run, and nothing else changes."""

import math
from dataclasses import dataclass
from typing import Any

import breaking
import pytest
import small_run
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from snapshots import same
from torch import Tensor
from waits import Unwaiting

from fastgen.config.guards import GuardsConfig
from fastgen.engine import guard
from fastgen.engine.guard import WINDOW, Guard, excesses
from fastgen.engine.progress import Drawn, Turned
from fastgen.engine.stage import Stage
from fastgen.errors import SpikeError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed

TURN = ("generator",)


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are judged from the third turn on."""
    monkeypatch.setattr(guard, "LEAST", 2)


def excess(past: list[float], value: float) -> float:
    return float(excesses(torch.tensor(past)[:, None], torch.tensor([value])))


def test_a_figure_is_judged_by_the_median_and_its_absolute_deviation():
    past = [10.0, 14.0, 6.0, 12.0, 8.0] * 8
    assert excess(past, 100.0) == pytest.approx(90 / (1.4826 * 2))
    assert excess([*past, 1e9], 100.0) == pytest.approx(90 / (1.4826 * 2))
    assert excess([*past, math.inf], 100.0) == pytest.approx(90 / (1.4826 * 2))
    assert excess(past, 1.0) < 0


def test_what_hardly_moves_has_to_double_at_least():
    assert excess([1.0] * 40, 1.5) == pytest.approx(5)
    assert excess([-1.0] * 40, 0.5) == pytest.approx(15)


@pytest.mark.parametrize("past", [[0.0] * 64, [1.0, 2.0] * 15, [math.inf] * 40 + [1.0, 2.0] * 12])
def test_without_a_past_that_moved_nothing_is_known(past: list[float]):
    assert math.isnan(excess(past, 1e9))


def found(values: list[float], mode: str = "warn") -> list[int]:
    """The turns of these figures that spike."""
    judge = Guard(GuardsConfig(spikes=mode), "small", half=False, device=torch.device("cpu"))
    return [i for i, value in enumerate(values) if judge.judged(TURN, torch.tensor([value]))[1].any()]


@settings(max_examples=8, deadline=None)
@given(
    rate=st.floats(0.9, 1.0),
    noise=st.floats(0.01, 0.5),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 2**31),
)
def test_a_falling_curve_raises_no_alarm_and_a_hundredfold_does(rate: float, noise: float, scale: float, seed: int):
    steps = torch.arange(60, dtype=torch.float64)
    around = (noise * torch.randn(60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).exp()
    curve = (scale * rate**steps * around).tolist()
    assert found(curve) == []
    curve[50] = 100 * max(curve[:50])
    assert found(curve) == [50]


def test_a_new_level_is_no_spike_for_long():
    spiked = found([1.0, 1.1] * 40 + [10.0, 11.0] * 40)
    assert spiked == list(range(80, 81 + WINDOW // 2))


def trained(pipeline: Pipeline, spikes: str, objective: Any = None, **train: Any) -> Stage:
    """A stage after three cycles, whose loss is a hundred times as large in the fourth."""
    objective = objective or breaking.Spiking(at=(3,))
    stage = small_run.stage(pipeline, objective, guards=GuardsConfig(spikes=spikes), **train)  # type: ignore[arg-type]
    for _ in range(3):
        stage.cycle()
    return stage


def updated(stage: Stage) -> tuple[list[Tensor], object]:
    """All that an update of the generator changes."""
    groups = ("generator", "optimizer.generator", "ema")
    tensors, optimizer = stage.snapshot().tensors, stage.optimizers["generator"]
    held = [value.clone() for name in groups for value in tensors[name].values()]
    return held, (stage.position.images, optimizer.updates, optimizer.lr, stage.ema and stage.ema.updates)


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(
    ("at", "train"),
    [
        ((3,), {"optim": {"warmup": 99}}),
        ((13,), {"micro_batch": 1}),
        ((3,), {"precision": "fp16"}),
        ((3,), {"optim": {"name": "muon"}}),
    ],
)
def test_a_skipped_turn_changes_and_counts_nothing(pipeline: Pipeline, at: tuple[int, ...], train: dict[str, object]):
    stage = trained(pipeline, "skip", breaking.Spiking(at=at), **train)
    for scaler in stage._scalers.values():
        scaler.update(16.0)  # under fp16, so that the spike does not overflow
    before = updated(stage)
    assert stage.cycle()["generator/regression"] > 10
    assert same(before, updated(stage))
    [incident] = stage.guard.taken()
    assert "generator/regression spikes to" in incident.said
    assert incident.said.endswith("in cycle 3 of stage 'small', generator's turn; it is skipped")
    stage.cycle()
    assert not same(before, updated(stage))
    assert stage.guard.taken() == []
    assert (stage.position.images, stage.position.drawn) == (4 * 4, 5 * 4)


@dataclass(frozen=True)
class Rough(DMD2):
    """DMD2 whose fourth generator's turn has a loss a thousand times as large."""

    def generator(self, roles: Any, batch: Any) -> dict[str, Tensor]:
        return {n: v * (1e3 if batch.images == 12 else 1) for n, v in super().generator(roles, batch).items()}


@pytest.mark.usefixtures("soon")
def test_the_turns_after_a_skipped_one_go_on(pipeline: Pipeline):
    stage = trained(pipeline, "skip", Rough(ratio=1, guidance=Fixed(1.5), gan=GAN(0.0)))
    before, fake = updated(stage), small_run.parameters(stage, "fake_score")
    stage.cycle()
    assert same(before, updated(stage))
    assert not torch.equal(fake, small_run.parameters(stage, "fake_score"))
    assert stage.optimizers["fake_score"].updates == 4


@pytest.mark.usefixtures("soon")
def test_a_warned_turn_trains_as_if_nobody_watched(pipeline: Pipeline):
    warned, unwatched = trained(pipeline, "warn"), trained(pipeline, "ignore")
    assert warned.cycle() == unwatched.cycle()
    assert same(updated(warned), updated(unwatched))
    assert len(warned.guard.taken()) == 1
    assert unwatched.guard.taken() == []


@pytest.mark.usefixtures("soon")
def test_a_spike_stops_the_run_before_anything_is_updated(pipeline: Pipeline):
    stage = trained(pipeline, "stop")
    before = updated(stage)
    with pytest.raises(SpikeError, match=r"regression spikes to .* in cycle 3 .*--resume guards.spikes=skip") as error:
        stage.cycle()
    assert error.value.exit_code == 4
    assert same(before, updated(stage))


@pytest.mark.usefixtures("soon")
def test_a_resumed_stage_holds_its_first_turn_against_those_before(pipeline: Pipeline):
    stage = trained(pipeline, "skip")
    fresh = small_run.stage(pipeline, breaking.Spiking(at=(0,)), guards=GuardsConfig(spikes="skip"))
    fresh.restore(stage.snapshot())
    before = updated(fresh)
    fresh.cycle()
    assert same(before, updated(fresh))
    assert len(fresh.guard.taken()) == 1


def test_judging_and_blocking_wait_for_nothing():
    judge = Guard(GuardsConfig(spikes="skip"), "small", half=False, device=torch.device("cpu"))
    with Unwaiting([]):
        values = torch.ones(3, device=torch.device("cpu", 0))
        for _ in range(2):
            taken = Turned(TURN, Drawn(0, range(4)), ["a", "b", "c"], judge.judged(TURN, values), {})
            judge.blocked(taken)
