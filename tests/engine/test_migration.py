"""A checkpoint of an earlier version goes on under the names of today."""

import copy
from pathlib import Path
from typing import Any

import pytest
import small_run
import tiny
import torch

from fastgen.config.schema import TrainConfig
from fastgen.engine import checkpoint
from fastgen.engine.checkpoint import Snapshot
from fastgen.engine.migration import migrated
from fastgen.engine.stage import Stage
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives.trajectory.scm import SimplifiedConsistency


def begun() -> Stage:
    return small_run.stage(Pipeline(tiny.class_conditional()), SimplifiedConsistency(velocity="data"))


def as_before(name: str) -> str:
    return name.replace("log_variance", "weight")


def with_fingerprint(snapshot: Snapshot, roles: dict[str, Any], **objective: Any) -> Snapshot:
    """As a run stores it, with settings of its roles and of its objective."""
    train = TrainConfig(images=4, batch=4).model_dump(mode="json")
    stage = {"name": "small", "objective": {"name": "scm", **objective}, "train": {**train, "roles": roles}}
    fingerprint = {"seed": 0, "stages": [stage]}
    return Snapshot(snapshot.tensors, {**snapshot.state, "fingerprint": fingerprint})


def test_a_run_goes_on_from_a_checkpoint_whose_log_variance_was_called_weight(tmp_path: Path):
    first = begun()
    first.cycle()
    now = with_fingerprint(first.snapshot(), {"log_variance": {"lr": 1e-3}}, teacher_guidance=1.5)
    old = Snapshot(
        {as_before(name): tensors for name, tensors in now.tensors.items()},
        {
            **with_fingerprint(now, {"weight": {"lr": 1e-3}}, guidance=1.5).state,
            "optimizers": {as_before(role): value for role, value in now.state["optimizers"].items()},
        },
    )
    path = checkpoint.save(tmp_path, 4, old, keep=1)
    assert (path / "weight.safetensors").exists()
    found, second = migrated(checkpoint.load(path)), begun()
    assert found.state["fingerprint"] == now.state["fingerprint"]
    second.restore(found)
    assert torch.equal(small_run.parameters(second, "log_variance"), small_run.parameters(first, "log_variance"))
    assert second.cycle() == pytest.approx(first.cycle(), rel=1e-6)


def test_a_guidance_of_both_scores_keeps_its_name():
    now = with_fingerprint(begun().snapshot(), {})
    now.state["fingerprint"]["stages"][0]["objective"] = {"name": "dmd2", "guidance": 1.5}
    assert migrated(now).state["fingerprint"] == now.state["fingerprint"]


def test_a_checkpoint_of_this_version_is_what_it_was():
    now = with_fingerprint(begun().snapshot(), {"log_variance": {}})
    found = migrated(now)
    assert found.state == now.state
    assert list(found.tensors) == list(now.tensors)
    assert all(found.tensors[name] is tensors for name, tensors in now.tensors.items())


def test_settings_that_a_version_did_not_have_are_at_their_defaults():
    now = with_fingerprint(begun().snapshot(), {})
    (stage,) = now.state["fingerprint"]["stages"]
    older = {name: value for name, value in stage["train"]["optim"].items() if name not in ("name", "momentum")}
    then = Snapshot(now.tensors, copy.deepcopy(now.state))
    then.state["fingerprint"]["stages"][0]["train"]["optim"] = {**older, "lr": 0.5}
    found = migrated(then).state["fingerprint"]["stages"][0]["train"]
    assert found == {**stage["train"], "optim": {**stage["train"]["optim"], "lr": 0.5}}
