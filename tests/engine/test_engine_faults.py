"""A turn that breaks: nothing is updated, and the error names it; fp16 skips and says so."""

import math

import breaking
import pytest
import small_run
import tiny
from snapshots import everything, same

from fastgen.engine.guard import MOST_SKIPS
from fastgen.errors import NonFiniteError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2
from fastgen.objectives.parts.guidance_laws import Fixed


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline(tiny.class_conditional())


def stop_with(stage, message):
    """Runs cycle 3 of a stage that breaks in it, and checks that nothing moved."""
    for _ in range(3):
        stage.cycle()
    before = everything(stage)
    with pytest.raises(NonFiniteError, match=message):
        stage.cycle()
    assert same(before, everything(stage))
    assert stage.position.images == 12


def test_a_loss_that_is_not_finite_stops_before_the_update(pipeline):
    stage = small_run.stage(pipeline, breaking.Spoilt(cycles=(3,)))
    stop_with(stage, r"generator/regression is nan.* in cycle 3 of stage 'small', generator's turn")


def test_a_gradient_that_is_not_finite_stops_before_the_update(pipeline):
    stage = small_run.stage(pipeline, breaking.Spoilt(cycles=(3,), gradient_only=True))
    stop_with(stage, r"^generator/grad is (nan|inf) in cycle 3 of stage 'small', generator's turn")


class BrokenGenerator(DMD2):
    """From its second cycle on the generator's loss is no number, while the fake score's is."""

    def generator(self, roles, batch):
        factor = math.nan if batch.images else 1.0
        return {name: factor * value for name, value in super().generator(roles, batch).items()}


@pytest.mark.parametrize("ema_device", ["auto", "cpu"])
def test_the_turns_after_one_that_broke_update_nothing(pipeline, ema_device):
    stage = small_run.stage(pipeline, BrokenGenerator(ratio=2, guidance=Fixed(1.5)), ema_device=ema_device)
    stage.cycle()
    before = everything(stage)
    with pytest.raises(NonFiniteError, match=r"generator/dm is nan, .*in cycle 1 .*generator's turn"):
        stage.cycle()
    assert same(before, everything(stage))
    updates = {role: optimizer.updates for role, optimizer in stage.optimizers.items()}
    assert updates == {"generator": 1, "fake_score": 2, "discriminator": 2}
    assert (stage.position.images, stage.ema.updates) == (4, 1)


def test_the_error_names_the_turn_that_broke(pipeline):
    stage = small_run.stage(pipeline, breaking.FakeOverflows(ratio=2))
    with pytest.raises(NonFiniteError, match=r"fake_score/gan is inf.*in cycle 0 .*fake_score's turn"):
        stage.cycle()
    assert {role: o.updates for role, o in stage.optimizers.items()} == {
        "generator": 1,
        "fake_score": 1,
        "discriminator": 1,
    }


def test_an_fp16_overflow_skips_the_update_and_all_that_counts_it(pipeline):
    stage = small_run.stage(pipeline, breaking.Spoilt(cycles=(1,)), precision="fp16", optim={"warmup": 9})
    stage.cycle()
    before, average, rate = everything(stage), stage.ema.updates, stage.optimizers["generator"].lr
    scale = stage.snapshot().state["scalers"]["generator"]["scale"]
    stage.cycle()
    assert same(before, everything(stage))
    assert (stage.ema.updates, stage.optimizers["generator"].lr) == (average, rate)
    assert (stage.position.images, stage.position.cycle) == (4, 2)
    assert stage.snapshot().state["scalers"]["generator"]["scale"] == scale / 2
    stage.cycle()
    assert not same(before, everything(stage))
    assert stage.position.images == 8


def test_fp16_gives_up_after_too_many_skips_in_a_row(pipeline):
    spoilt = breaking.Spoilt(cycles=(*range(MOST_SKIPS), *range(MOST_SKIPS + 1, 2 * MOST_SKIPS + 2)))
    stage = small_run.stage(pipeline, spoilt, precision="fp16", batch=1)
    for _ in range(2 * MOST_SKIPS + 1):
        stage.cycle()
    assert stage.position.images == 1
    with pytest.raises(NonFiniteError, match=f"in cycle {2 * MOST_SKIPS + 1} of"):
        stage.cycle()
