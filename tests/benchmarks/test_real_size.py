"""The benchmark of a whole run on a tiny pipeline, what it measures memory by, and the sizes that it stands for."""

import json

import numpy as np
import pytest
import torch

from benchmarks import real_size
from benchmarks.memory import Meter
from benchmarks.pipelines import MODELS
from benchmarks.real_size import main


@pytest.mark.parametrize(("model", "millions"), [("sdxl", 2567.5), ("flux", 11901.4)])
def test_denoisers_are_of_real_size(model, millions):
    net = MODELS[model].network.built(torch.device("meta"), torch.bfloat16)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


def test_a_peak_within_a_stage_is_seen():
    meter = Meter(torch.device("cpu"))
    with meter.stage("idle"):
        pass
    with meter.stage("much"):
        held = np.ones(64 * 2**20, np.uint8)
        meter_sees = held.sum()
        del held
    assert meter_sees == 64 * 2**20
    idle, much = (meter.spent[name] for name in ("idle", "much"))
    assert much.host_gib - much.before_gib >= 60 / 1024
    assert idle.host_gib - idle.before_gib < 30 / 1024


def test_where_a_stage_broke_off_is_told(monkeypatch):
    def built_and_cut_off(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(real_size, "_build", built_and_cut_off)
    found = main(["--model", "tiny", "--device", "cpu"])
    assert found["failed"] == "KeyboardInterrupt: "
    assert found["failed_at"][-1].endswith(" built_and_cut_off")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["tiny", "tiny_flux"])
def test_every_stage_of_a_run_is_measured(model, tmp_path):
    found = main(["--model", model, "--device", "cpu", "--out", str(tmp_path / "run.json"), "--cycles", "2"])
    assert "failed" not in found
    assert json.loads((tmp_path / "run.json").read_text()) == json.loads(json.dumps(found))
    assert [name.split()[0] for name in found["stages"]] == [
        *("build", "save", "load", "probe", "student", "encode", "roles", "cycle", "cycle"),
        *("checkpoint", "resume", "release", "verify", "verify"),
    ]
    assert all(size > 0 for size in (found["saved_gib"], *found["exported_gib"].values()))
