"""A checkpoint of an earlier version goes on under the names of today."""

import copy
from pathlib import Path
from typing import Any

import pytest
import small_run
import tiny
import torch

from fastgen.config.schema import Config
from fastgen.config.yaml_file import fingerprint
from fastgen.engine import checkpoint
from fastgen.engine.checkpoint import Snapshot
from fastgen.engine.migration import migrated
from fastgen.engine.saved import FORMAT
from fastgen.engine.stage import Stage
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives.trajectory.scm import SimplifiedConsistency

HERE = Path("runs/checkpoints/00000004")


def begun() -> Stage:
    return small_run.stage(Pipeline(tiny.class_conditional()), SimplifiedConsistency(velocity="data"))


def as_before(name: str) -> str:
    return name.replace("log_variance", "weight")


def with_fingerprint(snapshot: Snapshot, roles: dict[str, Any], **objective: Any) -> Snapshot:
    """As a run stores it, with settings of its roles and of its objective."""
    objective = {"name": "scm", **objective}
    settings = {"out": "", "teacher": {"path": "a"}, "data": {"source": "digits"}, "student": {"steps": [1]}}
    train = {"images": 4, "batch": 4, "roles": roles}
    config = Config.model_validate({**settings, "stages": [{"objective": objective, "train": train}]})
    return Snapshot(snapshot.tensors, {"format": FORMAT, **snapshot.state, "fingerprint": fingerprint(config)})


def of_format_1(snapshot: Snapshot) -> Snapshot:
    """The same as a version wrote it that said no format and had other names."""
    state = copy.deepcopy(snapshot.state)
    del state["format"]
    state["optimizers"] = {as_before(role): value for role, value in state["optimizers"].items()}
    (stage,) = state["fingerprint"]["stages"]
    stage["train"]["roles"] = {as_before(role): value for role, value in stage["train"]["roles"].items()}
    stage["objective"]["guidance"] = stage["objective"].pop("teacher_guidance")
    return Snapshot({as_before(name): tensors for name, tensors in snapshot.tensors.items()}, state)


def test_a_run_goes_on_from_a_checkpoint_whose_log_variance_was_called_weight(tmp_path: Path):
    first = begun()
    first.cycle()
    now = with_fingerprint(first.snapshot(), {"log_variance": {"lr": 1e-3}}, teacher_guidance=1.5)
    path = checkpoint.save(tmp_path, 4, of_format_1(now), keep=1)
    assert (path / "weight.safetensors").exists()
    found, second = migrated(checkpoint.load(path), path), begun()
    assert found.state == now.state
    second.restore(found)
    assert torch.equal(small_run.parameters(second, "log_variance"), small_run.parameters(first, "log_variance"))
    assert second.cycle() == pytest.approx(first.cycle(), rel=1e-6)


def test_a_guidance_of_both_scores_keeps_its_name():
    now = with_fingerprint(begun().snapshot(), {})
    (stage,) = now.state["fingerprint"]["stages"]
    stage["objective"] = {"name": "dmd2", "guidance": 1.5}
    old = Snapshot(now.tensors, {name: value for name, value in now.state.items() if name != "format"})
    assert migrated(old, HERE).state["fingerprint"]["stages"][0]["objective"]["guidance"] == 1.5


def test_a_checkpoint_of_this_version_is_what_it_was():
    now = with_fingerprint(begun().snapshot(), {"log_variance": {}})
    found = migrated(now, HERE)
    assert found.state == now.state
    assert list(found.tensors) == list(now.tensors)
    assert all(found.tensors[name] is tensors for name, tensors in now.tensors.items())


def test_settings_of_an_adversary_that_there_was_not_are_none_of_the_run():
    now = with_fingerprint(begun().snapshot(), {}, name="tscd", gan=0)
    then = Snapshot(now.tensors, copy.deepcopy(now.state))
    then.state["fingerprint"]["stages"][0]["objective"]["gan"] |= {"learned": 1.0, "kind": "hinge"}
    assert migrated(then, HERE).state == now.state


@pytest.mark.parametrize(
    "place",
    [
        ("memory",),
        ("lora",),
        ("lora", "norms"),
        ("teacher", "revision"),
        ("stages", 0, "discriminator", "heads"),
        ("stages", 0, "objective", "norm"),
        ("stages", 0, "train", "sharding"),
        ("stages", 0, "train", "optim", "momentum"),
    ],
    ids=lambda place: ".".join(map(str, place)),
)
def test_a_setting_that_a_version_did_not_have_is_at_its_default(place: tuple[str | int, ...]):
    now = with_fingerprint(begun().snapshot(), {})
    then = Snapshot(now.tensors, copy.deepcopy(now.state))
    node = then.state["fingerprint"]
    for key in place[:-1]:
        node = node[key]
    del node[place[-1]]
    then.state["fingerprint"]["stages"][0]["train"]["optim"]["lr"] = 0.5
    found = migrated(then, HERE).state["fingerprint"]
    assert found["stages"][0]["train"]["optim"].pop("lr") == 0.5
    del now.state["fingerprint"]["stages"][0]["train"]["optim"]["lr"]
    assert found == now.state["fingerprint"]
