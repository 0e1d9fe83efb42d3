"""Moments of idle roles in main memory: where they are when, and that nothing is trained otherwise."""

from types import SimpleNamespace

import pytest
import small_run
import tiny
import torch
from torch import Tensor

from fastgen.engine.moments import Moments
from fastgen.engine.stage import Stage
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2
from fastgen.objectives.parts.guidance_laws import Fixed

TWO_FAKE_TURNS = DMD2(ratio=2, guidance=Fixed(1.5))
NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def stage_of(pipeline: Pipeline, *, sparing: bool) -> Stage:
    stage = small_run.stage(pipeline, TWO_FAKE_TURNS)
    if not sparing:
        return stage
    return Stage(stage.config, stage.roles, stage.feed, stage.accelerator, sparing=True)


def moments(stage: Stage, role: str) -> list[Tensor]:
    """A role's moments in the order of its parameters."""
    states = stage.optimizers[role].optimizer.state.values()
    return [value for state in states for value in state.values() if value.ndim]


def test_a_sparing_stage_trains_as_any_other(pipeline):
    plain, sparing = (stage_of(pipeline, sparing=wanted) for wanted in (False, True))
    for _ in range(3):
        wanted, found = plain.cycle(), sparing.cycle()
        assert found == pytest.approx(wanted, rel=1e-5)
    for one, other in zip(plain.snapshot().tensors.items(), sparing.snapshot().tensors.items(), strict=True):
        assert one[0] == other[0]
        for key, value in one[1].items():
            torch.testing.assert_close(other[1][key], value, rtol=1e-5, atol=1e-8)


def test_moments_are_there_for_their_step_and_lend_their_place_to_the_next_role(pipeline):
    stage, seen, places = stage_of(pipeline, sparing=True), [], {}
    for role, optimizer in stage.optimizers.items():
        step = optimizer.step

        def noted(role: str = role, step=step, **told) -> None:
            seen.append((role, {*stage._moments._away}))
            assert not stage._moments._spare
            step(**told)
            places.setdefault(role, []).append({value.data_ptr() for value in moments(stage, role)})

        optimizer.step = noted
    for _ in range(2):
        stage.cycle()
    fake = {"fake_score", "discriminator"}
    first, second = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    assert [(role, away) for role, away in first if role == "generator"] == [("generator", set())]
    assert all(away == ({"generator"} if role in fake else fake) for role, away in [*first[1:], *second])
    assert places["generator"][1] <= places["generator"][0].union(*(places[role][0] for role in fake))
    homes = {home.data_ptr() for home in stage._moments._homes["fake_score"]}
    assert not homes & set().union(*places["fake_score"])


def test_what_is_moved_comes_back_as_it_was():
    tensors = {name: torch.randn(3, 5) for name in ("a", "b")}
    optimizers = {
        name: SimpleNamespace(state={0: {"step": torch.tensor(1.0), "mean": tensor.clone()}})
        for name, tensor in tensors.items()
    }
    ours = Moments(optimizers, torch.device("cpu"))
    for acting in (["a"], ["b"], ["a", "b"], [], ["b"], ["a"]):
        ours.attend(acting)
        ours.wait()
        for name, optimizer in optimizers.items():
            assert torch.equal(optimizer.state[0]["mean"], tensors[name])
            assert (name in ours._away) == (name not in acting)
        for name in acting:
            optimizers[name].state[0]["mean"] += 1
            tensors[name] += 1


@pytest.mark.gpu
@NEEDS_CUDA
def test_on_a_gpu_one_roles_moments_are_there_and_none_is_read_before_it_is():
    device, wide = torch.device("cuda"), 2**24
    optimizers = {
        name: SimpleNamespace(state={i: {"mean": torch.full((wide,), 1.0, device=device)} for i in range(4)})
        for name in ("a", "b")
    }
    before, ours = torch.cuda.memory_allocated(), Moments(optimizers, device)
    for turn in range(6):
        name = "ab"[turn % 2]
        ours.attend([name])
        ours.wait()
        for state in optimizers[name].state.values():
            state["mean"] += 1
    ours.settle()
    torch.cuda.synchronize()
    for optimizer in optimizers.values():
        for state in optimizer.state.values():
            assert torch.equal(state["mean"].cpu(), torch.full((wide,), 4.0))
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= before - 3 * 4 * wide
