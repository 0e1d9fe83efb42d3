"""Blocks are computed again where a turn would not fit: what is measured, and what is decided by it."""

import math
from typing import Any

import pytest
import small_run
import tiny
import torch

from fastgen.config.lora import LoRAConfig
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


def watched(stage: Stage) -> dict[str, int]:
    """Bytes of each role's gradients when they are applied, filled in by a cycle."""
    seen: dict[str, int] = {}
    for role, optimizer in stage.optimizers.items():

        def step(role: str = role, optimizer: Any = optimizer, before: Any = optimizer.step, **told: Any) -> None:
            seen[role] = sum(p.grad.nbytes for p in optimizer.parameters if p.grad is not None)
            before(**told)

        optimizer.step = step  # type: ignore[method-assign]
    return seen


def moments(stage: Stage, role: str) -> int:
    return sum(value.nbytes for state in stage.optimizers[role].optimizer.state.values() for value in state.values())


FULL = [
    {"precision": "bf16", "masters": masters, "gradients": gradients, "optim": {"name": name, "betas": (beta, 0.9)}}
    for name, beta, masters, gradients in (
        ("adamw", 0.0, "fp32", "fp32"),
        ("adamw", 0.9, "split", "bf16"),
        ("adamw", 0.0, "bf16", "fp32"),
        ("adamw8bit", 0.9, "fp32", "fp32"),
        ("adamw8bit", 0.0, "bf16", "bf16"),
        ("muon", 0.0, "split", "bf16"),
    )
]


@pytest.mark.parametrize("settings", FULL, ids=lambda s: "-".join([*map(str, s["optim"].values()), s["masters"]]))
def test_state_to_come_is_what_a_cycle_allocates(pipeline: Pipeline, settings: dict[str, Any]):
    trained = small_run.stage(pipeline, WITHOUT_GAN, ema=0.9, **settings)
    said = {turn: memory._state(trained, turn) for turn in trained.config.objective.cycle}
    gradients = watched(trained)
    trained.cycle()
    held = sum(moments(trained, role) for role in trained.optimizers)
    assert said == {turn: held + gradients[turn[0]] for turn in said}
    assert held > 0
    assert {turn: memory._state(trained, turn) for turn in said} == {turn: gradients[turn[0]] for turn in said}


def test_an_adapter_s_state_is_that_of_its_masters_and_idle_moments_are_elsewhere(pipeline: Pipeline):
    trained = stage(pipeline, optim={"betas": (0.0, 0.9)})
    count = {role: sum(p.numel() for p in trained.roles.parameters(role)) for role in trained.optimizers}
    assert memory._state(trained, ("generator",)) == 8 * count["generator"] + 4 * count["fake_score"] + 2 * 4
    trained.sparing = True
    assert memory._state(trained, ("generator",)) == 8 * count["generator"] + 4


def test_as_few_blocks_are_computed_again_as_there_is_room_for(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    measured, needs = stage(pipeline), {}
    for share in (0, *memory.SHARES):
        if share:
            memory._compute_again(measured, share)
        room = room_for(measured)
        needs[share] = room.kept + room.state
    assert list(needs.values()) == sorted(set(needs.values()), reverse=True), "each share keeps less"
    for share in (3, 1):
        monkeypatch.setattr(memory, "free_bytes", lambda device, share=share: math.ceil(needs[share] / memory.ROOM))
        auto = stage(pipeline)
        note = settle_recompute(auto)
        assert note is not None
        assert note.endswith(
            ": blocks are computed again" if share == 1 else f": one block in {share} is computed again"
        )
        assert room_for(auto).kept + room_for(auto).state == needs[share]


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


def test_graphs_of_one_turn_stand_beside_the_first_calls_of_another(pipeline: Pipeline):
    measured = stage(pipeline, WITH_GAN)
    turns = sorted(memory._kept(measured, turn) for turn in set(measured.config.objective.cycle))
    assert len(turns) == 2
    plain = room_for(measured)
    measured.graphed = True
    recorded = room_for(measured)
    assert (plain.kept, plain.recorded) == (turns[1], 0)
    assert (recorded.kept, recorded.recorded) == (turns[1], turns[0])


def test_only_auto_decides(pipeline: Pipeline):
    assert settle_recompute(stage(pipeline, gradient_checkpointing=False)) is None


def test_enough_leaves_a_share_free():
    assert Room(kept=700, state=100, free=1000).enough
    assert not Room(kept=701, state=100, free=1000).enough
    assert Room(kept=400, state=100, free=1000, recorded=300).enough
    assert not Room(kept=400, state=100, free=1000, recorded=301).enough
    assert str(Room(2**30, 2**29, 2**31)) == (
        "a turn keeps 1.0 GiB for its backward pass and training 0.5 GiB, of 2.0 GiB that are free"
    )
    assert str(Room(2**30, 2**29, 2**32, recorded=2**30)) == (
        "a turn keeps 1.0 GiB for its backward pass, graphs of another one 1.0 GiB and training 0.5 GiB, of 4.0 GiB "
        "that are free"
    )
