"""A stage that is over leaves no network behind, whether or not Python happens to look for cycles."""

import gc
import weakref

import pytest
import tiny
import yaml

from fastgen.config.yaml_file import load
from fastgen.distillation.distil import distil
from fastgen.engine.run import Run


@pytest.fixture
def no_collection():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("verified_here")
def test_networks_of_a_stage_are_gone_when_the_next_is_built(tmp_path, monkeypatch, no_collection):
    tiny.class_conditional().save_pretrained(tmp_path / "teacher")
    stages = [{"objective": {"name": "dmd2", "gan": 0, "guidance": 1.0}, "name": name} for name in ("first", "second")]
    config = {
        "out": "run",
        "teacher": {"path": str(tmp_path / "teacher"), "num_classes": 3},
        "student": {"steps": [1]},
        "data": {"source": "noise", "num_classes": 3},
        "pairs": {"count": 4, "steps": 2},
        "train": {"images": 4, "batch": 4},
        "stages": [{"objective": {"name": "kd"}}, *stages],
        "log": {"previews": 0},
        "device": "cpu",
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    earlier, left, build = [], [], Run.stage

    def built(self, index, weights):
        left.append(sum(network() is not None for network in earlier))
        stage = build(self, index, weights)
        earlier.extend(weakref.ref(network) for network in stage.roles.members.values())
        return stage

    monkeypatch.setattr(Run, "stage", built)
    monkeypatch.chdir(tmp_path)
    distil(load(tmp_path / "config.yaml", []), recipes=tmp_path)
    assert left == [0, 0, 0]
