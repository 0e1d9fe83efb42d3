"""A checkpoint that another version, another program or a hand wrote: an error by name, or read as it is."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import small_run
import tiny
import torch
from snapshots import everything, same
from torch import Tensor

from fastgen.config.schema import Config
from fastgen.config.yaml_file import fingerprint
from fastgen.engine.checkpoint import Snapshot
from fastgen.engine.migration import migrated
from fastgen.engine.saved import FORMAT
from fastgen.engine.stage import Stage
from fastgen.errors import CheckpointError
from fastgen.models.pipelines.pipeline import Pipeline

HERE = Path("runs/checkpoints/00000004")
VALUES: tuple[Any, ...] = (None, "1e-4", [], {}, -1, KeyError)
GROUPS = ["generator", "ema", "optimizer.generator"]


@pytest.fixture(scope="module")
def stage() -> Stage:
    return small_run.stage(Pipeline(tiny.class_conditional()), small_run.KD, ema=0.9)


@pytest.fixture(scope="module")
def saved(stage: Stage) -> Snapshot:
    """What a run would save after a cycle."""
    stage.cycle()
    held = stage.snapshot()
    settings = {"out": "", "teacher": {"path": "a"}, "data": {"source": "digits"}, "student": {"steps": [1]}}
    stages = [{"objective": {"name": "kd"}, "train": {"images": 4}}]
    config = Config.model_validate({**settings, "stages": stages})
    about = {"format": FORMAT, "fingerprint": fingerprint(config)}
    tensors = {group: {n: t.clone() for n, t in found.items()} for group, found in held.tensors.items()}
    return Snapshot(tensors, copy.deepcopy({**held.state, **about, "quality": {"of": "a", "best": None, "since": 0}}))


def refused(stage: Stage | None, snapshot: Snapshot) -> str:
    """The error that the checkpoint ends in; empty where it is read, and fits the stage."""
    failure = None
    try:
        found = migrated(snapshot, HERE)
        if stage is not None:
            stage.restore(found)
    except CheckpointError as error:
        failure = error
    if failure is None:
        return ""
    assert failure.exit_code == 3
    assert re.search(r"use another|start in another", str(failure)), f"no remedy: {failure}"
    return str(failure)


def changed(snapshot: Snapshot, group: str, change: Callable[[dict[str, Tensor]], Any]) -> Snapshot:
    tensors = {name: dict(found) for name, found in snapshot.tensors.items()}
    change(tensors[group])
    return Snapshot(tensors, snapshot.state)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value, of lists in the first item alone; the run's settings are held elsewhere."""
    if path[:1] == ("fingerprint",) and len(path) > 1 and path[1] not in ("stages", "teacher", "data"):
        return
    if path:
        yield path
    inner = node.items() if isinstance(node, dict) else [(0, node[0])] if isinstance(node, list) and node else []
    for key, value in inner:
        yield from places(value, (*path, key))


def test_no_change_of_the_state_is_a_stack_trace(stage: Stage, saved: Snapshot):
    assert refused(stage, saved) == ""
    accepted, tried = [], 0
    for path in places(saved.state):
        for value in VALUES:
            state = copy.deepcopy(saved.state)
            node = state
            for key in path[:-1]:
                node = node[key]
            if value is KeyError:
                del node[path[-1]]
            else:
                node[path[-1]] = value
            tried += 1
            reader = stage if path[0] in ("optimizers", "scalers", "ema_updates") else None
            if not refused(reader, Snapshot(saved.tensors, state)):
                accepted.append((path, value))
    assert tried > 200
    assert [(path, value) for path, value in accepted if path[0] in ("stage", "position")] == []


@pytest.mark.parametrize("state", [None, [], "state", 3, {}, {"format": "2"}, {"format": 0}, {"format": True}])
def test_another_file_is_no_state(stage: Stage, saved: Snapshot, state: Any):
    assert "state.json does not hold the state of a run" in refused(stage, Snapshot(saved.tensors, state))


def test_a_later_format_says_which_version_to_take(stage: Stage, saved: Snapshot):
    message = refused(stage, Snapshot(saved.tensors, {**saved.state, "format": FORMAT + 1}))
    assert f"is of format {FORMAT + 1}" in message
    assert "the version that wrote it" in message


def test_a_stage_that_the_run_does_not_have_is_named(stage: Stage, saved: Snapshot):
    assert "number 7 of 1" in refused(stage, Snapshot(saved.tensors, {**saved.state, "stage": 7}))


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_that_is_missing_is_named(stage: Stage, saved: Snapshot, group: str):
    rest = {name: tensors for name, tensors in saved.tensors.items() if name != group}
    assert f"has no {group}.safetensors" in refused(stage, Snapshot(rest, saved.state))


def first(tensors: dict[str, Tensor]) -> str:
    """The first tensor that has an axis."""
    return next(name for name, tensor in tensors.items() if tensor.ndim)


def renamed(tensors: dict[str, Tensor]) -> None:
    tensors["0.renamed"] = tensors.pop(first(tensors))


def misplaced(tensors: dict[str, Tensor]) -> None:
    tensors["900." + first(tensors).partition(".")[2]] = tensors.pop(first(tensors))


def of_one_value(tensors: dict[str, Tensor]) -> None:
    tensors[first(tensors)] = torch.zeros(1)  # which every tensor's shape could be broadcast from


def flattened(tensors: dict[str, Tensor]) -> None:
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    tensors[name] = tensors[name].flatten()


def counted(tensors: dict[str, Tensor]) -> None:
    tensors[first(tensors)] = tensors[first(tensors)].long()


def missing(tensors: dict[str, Tensor]) -> None:
    del tensors[first(tensors)]


def extra(tensors: dict[str, Tensor]) -> None:
    tensors["another.weight"] = torch.zeros(2)


@pytest.mark.parametrize("change", [renamed, misplaced, of_one_value, flattened, counted, missing, extra])
@pytest.mark.parametrize("group", GROUPS)
def test_a_tensor_that_does_not_fit_is_named(stage: Stage, saved: Snapshot, group: str, change: Any):
    before = everything(stage)
    message = refused(stage, changed(saved, group, change))
    role = group.removeprefix("optimizer.")
    assert ("optimizer" if role != group else {"ema": "average"}.get(group, group)) in message
    if group == "generator":
        assert same(before, everything(stage)), "an error left half of a checkpoint in the run"


def test_a_moment_that_nothing_can_be_computed_with_is_named(stage: Stage, saved: Snapshot):
    def in_eight_bits(tensors: dict[str, Tensor]) -> None:
        name = next(name for name, tensor in tensors.items() if not tensor.ndim)
        tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    assert "is of torch.float8_e4m3fn" in refused(stage, changed(saved, "optimizer.generator", in_eight_bits))
