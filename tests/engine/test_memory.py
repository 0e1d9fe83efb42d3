"""Blocks are computed again where a turn would not fit: what is measured, and what is decided by it."""

import pytest
import small_run
import tiny
import torch

from fastgen.config.schema import LoRAConfig
from fastgen.engine import memory
from fastgen.engine.memory import Room, room_for, settle_recompute
from fastgen.engine.stage import Stage
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed

WITHOUT_GAN = DMD2(ratio=1, guidance=Fixed(1.5), gan=GAN(0.0))
WITH_GAN = DMD2(ratio=1, guidance=Fixed(1.5))


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def stage(pipeline: Pipeline, objective: DMD2 = WITHOUT_GAN, **train: object) -> Stage:
    return small_run.stage(pipeline, objective, lora=LoRAConfig(rank=2), **{"gradient_checkpointing": "auto", **train})


def kept(pipeline: Pipeline, objective: DMD2 = WITHOUT_GAN, **train: object) -> int:
    return room_for(stage(pipeline, objective, **train)).kept


def test_a_turn_keeps_by_the_row_and_the_largest_counts(pipeline: Pipeline):
    two, four, eight = (kept(pipeline, batch=batch) for batch in (2, 4, 8))
    assert (eight - four) == pytest.approx(2 * (four - two), rel=1e-3)
    assert 0.9 < (four - two) / two < 1.1
    assert kept(pipeline, batch=8, micro_batch=2) == two
    assert kept(pipeline, WITH_GAN, batch=4) > 1.2 * four
    assert kept(pipeline, gradient_checkpointing=True, batch=4) < 0.6 * four


def test_a_turn_keeps_what_its_graph_holds(pipeline: Pipeline):
    """The storages that a real generator turn's graph refers to, found by walking it."""
    measured = stage(pipeline)
    found = memory._kept(measured, ("generator",))
    held: dict[int, torch.UntypedStorage] = {}

    def hold(x: torch.Tensor) -> torch.Tensor:
        held[x.untyped_storage()._cdata] = x.untyped_storage()  # kept alive, so that no two have one place
        return x

    weights = {x.untyped_storage()._cdata for x in memory._weights(measured.roles)}
    batch = measured.feed.batch(0, 4, rng=torch.Generator(), shared_rng=torch.Generator())
    with measured.roles.training(("generator",)), torch.autograd.graph.saved_tensors_hooks(hold, lambda x: x):
        measured.config.objective.generator(measured.roles, batch)
    assert found == sum(storage.nbytes() for place, storage in held.items() if place not in weights)


def test_measuring_leaves_the_stage_as_it_was(pipeline: Pipeline):
    plain, measured = stage(pipeline, WITH_GAN), stage(pipeline, WITH_GAN)
    room_for(measured)
    first, second = (small_run.recorded(one, 2) for one in (plain, measured))
    assert first.figures == second.figures


def test_state_still_to_come_is_that_of_what_is_trained(pipeline: Pipeline):
    trained = stage(pipeline)
    count = sum(p.numel() for role in ("generator", "fake_score") for p in trained.roles.parameters(role))
    assert room_for(trained).state == 16 * count


@pytest.mark.parametrize(("free", "again"), [(2**40, False), (2**10, True)])
def test_blocks_are_computed_again_where_there_is_no_room(
    pipeline: Pipeline, free: int, again: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    auto = stage(pipeline)
    before = room_for(auto).kept
    note = settle_recompute(auto)
    assert note is not None
    assert note.endswith("blocks are computed again" if again else "no block is computed again")
    assert (room_for(auto).kept < 0.6 * before) is again
    expected = small_run.recorded(stage(pipeline, gradient_checkpointing=again), 1)
    assert small_run.recorded(auto, 1).figures == expected.figures


def test_only_auto_decides(pipeline: Pipeline):
    assert settle_recompute(stage(pipeline, gradient_checkpointing=False)) is None


def test_enough_leaves_a_share_free():
    assert Room(kept=700, state=100, free=1000).enough
    assert not Room(kept=701, state=100, free=1000).enough
    assert str(Room(2**30, 2**29, 2**31)) == (
        "a turn keeps 1.0 GiB for its backward pass and training 0.5 GiB, of 2.0 GiB that are free"
    )
