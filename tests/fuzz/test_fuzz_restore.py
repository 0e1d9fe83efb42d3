"""Checkpoints whose files are whole and whose contents are made up: a stage goes on from them or says what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import small_run
import tiny
import torch
from fuzzing import after, changes, fuzz
from hypothesis import strategies as st
from torch import Tensor

from fastgen.config.yaml_file import fingerprint
from fastgen.engine.checkpoint import Snapshot
from fastgen.engine.migration import migrated
from fastgen.engine.saved import FORMAT
from fastgen.engine.stage import Stage
from fastgen.models.pipelines.pipeline import Pipeline

HERE = Path("runs/checkpoints/00000004")


@pytest.fixture(scope="module")
def stage() -> Stage:
    return small_run.stage(Pipeline(tiny.class_conditional()), small_run.KD, ema=0.9)


@pytest.fixture(scope="module")
def saved(stage: Stage) -> Snapshot:
    """What a run would save after a cycle."""
    stage.cycle()
    held = stage.snapshot()
    about = {"format": FORMAT, "fingerprint": fingerprint(small_run.run_config(Path()))}
    tensors = {group: {name: tensor.clone() for name, tensor in of.items()} for group, of in held.tensors.items()}
    return Snapshot(tensors, {**held.state, **about, "quality": {"of": "a", "best": None, "since": 0}})


def go_on(stage: Stage, snapshot: Snapshot) -> None:
    stage.restore(migrated(snapshot, HERE))


@fuzz(changes)
def test_states_of_runs(case: list[Any], stage: Stage, saved: Snapshot) -> None:
    go_on(stage, Snapshot(saved.tensors, after(case, saved.state)))


PLACE = st.floats(0, 1, exclude_max=True)
SHAPES = st.sampled_from([(), (0,), (1,), (3,), (8, 8), (2, 8, 3, 3), (0, 8)])
KINDS = st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64])
TENSORS = st.none() | st.tuples(SHAPES, KINDS)


def altered(tensors: dict[str, dict[str, Tensor]], case: list[tuple[float, float, Any, str]]) -> dict[str, Any]:
    """Groups of which some tensors are others, missing, or called by another name as well."""
    found = {group: dict(of) for group, of in tensors.items()}
    for which, where, new, more in case:
        groups = [group for group in found.values() if group]
        group = groups[int(which * len(groups))]
        name = list(group)[int(where * len(group))]
        value = group[name] if more else group.pop(name)
        if new is not None:
            value = torch.ones(new[0]).to(new[1])
        if new is not None or more:
            group[name + more] = value
    return found


@fuzz(
    st.lists(st.tuples(PLACE, PLACE, TENSORS, st.sampled_from(["", "", ".x", "0", "\ud83d"])), min_size=1, max_size=3)
)
def test_tensors_of_runs(case: list[tuple[float, float, Any, str]], stage: Stage, saved: Snapshot) -> None:
    go_on(stage, Snapshot(altered(saved.tensors, case), saved.state))
