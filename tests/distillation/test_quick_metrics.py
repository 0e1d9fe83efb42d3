"""Quality while training: when it is measured, what becomes of the best weights, and that a kill changes nothing."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_run
import tiny
import torch
from accelerate import Accelerator
from measured import DMD2, KD, TRAIN, WEIGHTS, logged
from safetensors.torch import load_file
from torch import Tensor

import fastgen.distillation.distil
from fastgen.config.evaluate import EvaluateConfig
from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.distillation.monitor import Monitor
from fastgen.engine.log import RunLog
from fastgen.engine.quality import Quality, Yardstick, copied, passed
from fastgen.engine.stage import Stage
from fastgen.models.merging import merged
from fastgen.models.pipelines.loading import load

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    return folder


class Script:
    """A yardstick that tells the values of a list one by one, and keeps the weights that it was shown."""

    def __init__(self, *values: float, gap: Callable[[float], float] = abs) -> None:
        self.values, self.seen = values, list[dict[str, Tensor]]()
        self.yardstick = Yardstick(self.look, self.figures, "score", gap)

    def look(self, stage: Stage) -> None:
        self.seen.append(copied(stage))

    def figures(self, parts: Sequence[None]) -> dict[str, float]:
        return {"score": self.values[len(self.seen) - 1], "other": 1.0}


@pytest.fixture
def scripted(folder, tmp_path, monkeypatch) -> Callable[..., Config]:
    """A run that is measured by a script every two images; its config."""

    def carry_out(script: Script | None, *, resume: bool = False, stages=(DMD2,), evaluate=None, **changes) -> Config:
        monitor = None if script is None else Monitor(script.yardstick, lambda _: None)
        monkeypatch.setattr(fastgen.distillation.distil, "_monitor", lambda *_, **__: monitor)
        settings = {
            "student": {"steps": [1]},
            "checkpoints": {},
            "stages": stages,
            "evaluate": evaluate or {"every": 2},
        }
        config = small_run.run_config(folder, **{"out": tmp_path / "run", **settings, **changes})
        distil(config, recipes=folder, resume=resume)
        return config

    return carry_out


def scores(run: Path) -> dict[tuple[int, int], float | None]:
    """(stage, images) -> the score in the log."""
    return {(r["stage"], r["images"]): r["quality/score"] for r in logged(run) if "quality/score" in r}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_best_weights_of_a_stage_go_to_the_next_one_and_to_the_export(scripted, capsys):
    script = Script(5, 3, 4, 4, 4, 9, 8, 7, 8, 8)
    run = scripted(script, stages=(KD, DMD2)).out
    assert equal(script.seen[5], script.seen[1])
    assert equal(load_file(run / WEIGHTS), script.seen[7])
    assert not equal(script.seen[7], script.seen[9])
    assert equal(load_file(run / "stages/kd/generator.safetensors"), script.seen[1])
    assert equal(load_file(run / "best/generator.safetensors"), script.seen[7])
    about = json.loads((run / "best/about.json").read_text())
    assert about == {"stage": "dmd2", "images": 4, "metric": "score", "score": 7, "other": 1.0}
    said = capsys.readouterr().err
    assert "stage 'kd' was best at 2 images (score 3)" in said
    assert "stage 'dmd2' was best at 4 images (score 7)" in said
    assert list(scores(run)) == [(stage, images) for stage in (0, 1) for images in (0, 2, 4, 6, 8)]
    assert all("generator/lr" in record for record in logged(run) if record["images"])


def test_measuring_changes_no_number_and_looks_at_the_average(scripted):
    script = Script(1, 2, 3, 4, 5)
    smooth = [{**DMD2, "train": {**TRAIN, "optim": {"eps": 1e-3}}}]  # under which rounding stays rounding
    run = scripted(script, stages=smooth, evaluate={"every": 2, "keep_best": False}).out
    ema = load_file(run / "checkpoints/00000008/ema.safetensors")
    assert all(torch.equal(ema[f"net.{name}"], value) for name, value in script.seen[-1].items())
    assert equal(load_file(run / WEIGHTS), script.seen[-1])
    assert not (run / "best").exists()
    plain = scripted(None, stages=smooth, out=run.with_name("plain")).out  # whose networks lie elsewhere
    torch.testing.assert_close(load_file(run / WEIGHTS), load_file(plain / WEIGHTS), rtol=1e-4, atol=1e-6)


def test_higher_may_be_better_and_nan_never_is(scripted):
    script = Script(math.nan, 1, 3, math.inf, 3, gap=lambda value: -value)
    run = scripted(script, stages=[{**DMD2, "train": {**TRAIN, "ema": None}}]).out
    assert equal(load_file(run / WEIGHTS), script.seen[2])
    assert not equal(script.seen[2], script.seen[4])
    assert list(scores(run).values()) == [None, 1, 3, None, 3]


def test_a_stage_that_no_longer_improves_ends_early_and_stays_ended(scripted, capsys):
    script = Script(5, 3, 4, 3)
    evaluate = {"protocol": "digits", "every": 2, "patience": 2}
    run = scripted(script, evaluate=evaluate).out
    reason = "stops at 6 of 8 images: score did not improve in 2 measurements (3 stands since 2 images)"
    assert reason in capsys.readouterr().err
    assert reason in logged(run)[-1]["note"]
    assert logged(run)[-1]["images"] == 6
    assert equal(load_file(run / WEIGHTS), script.seen[1])
    before = (run / "log.jsonl").read_bytes()
    scripted(script, evaluate=evaluate, resume=True)
    assert (run / "log.jsonl").read_bytes() == before
    assert equal(load_file(run / WEIGHTS), script.seen[1])


def test_the_best_adapter_of_a_shared_network_is_exported(scripted, folder):
    script = Script(2, 2, 1, 3, 3)
    run = scripted(script, sharing="lora", lora={"rank": 2, "alpha": 3}).out
    assert equal(load_file(run / "best/generator.safetensors"), script.seen[2])
    network = merged(load(folder / "teacher", device="cpu").unet, script.seen[2], alpha=3)
    for name, value in load_file(run / WEIGHTS).items():
        torch.testing.assert_close(value, network.state_dict()[name])
    assert not all(torch.equal(script.seen[2][name], script.seen[4][name]) for name in script.seen[2])


def stopping_run(folder: Path, out: Path) -> None:
    """In one of two processes: a run whose figure improves only once, which the first process alone knows."""
    values = iter([3.0, 2.0, 2.0, 1.0, 1.0])

    def figures(parts: Sequence[int]) -> dict[str, float]:
        assert list(parts) == [0, 1]
        return {"score": next(values)}

    yardstick = Yardstick(lambda stage: stage.accelerator.process_index, figures, "score", abs)
    monitor = Monitor(yardstick, lambda _: None)
    fastgen.distillation.distil._monitor = lambda *_, **__: monitor
    evaluate = {"protocol": "digits", "every": 2, "patience": 1}
    distil(
        small_run.run_config(folder, out=out, student={"steps": [1]}, stages=[DMD2, KD], evaluate=evaluate),
        recipes=folder,
    )


@pytest.mark.slow  # two processes; in test_quick_protocols two measure, in tests/engine/test_distributed two agree
def test_two_processes_stop_together(folder, tmp_path):
    assert small_run.in_processes(2, stopping_run, folder, tmp_path / "run") == [0, 0]
    assert [(r["stage"], r["images"]) for r in logged(tmp_path / "run")] == [(0, 0), (0, 2), (0, 4), (1, 0), (1, 2)]


def test_a_best_of_another_measure_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("fastgen.engine.quality.copied", lambda stage: {"w": torch.zeros(1)})
    script, stage = Script(1), SimpleNamespace()
    frechet, accuracy = (
        Quality(script.yardstick, EvaluateConfig(protocol="digits", metric=metric), tmp_path)
        for metric in ("frechet", "accuracy")
    )
    state = {**frechet.state(), "best": {"value": 1.0, "images": 4}, "since": 2}
    assert frechet.restore(state, {"w": torch.ones(1)}, stage)
    assert (frechet.best.images, frechet.since, list(frechet.weights)) == (4, 2, ["w"])
    assert not accuracy.restore(state, {"w": torch.ones(1)}, stage)
    assert (accuracy.best, accuracy.since, accuracy.weights) == (None, 0, {})


def test_marks_stand_at_multiples_or_at_tenths():
    def marks(**settings: int | None) -> list[int]:
        return [now for now in range(3, 101, 3) if passed(now - 3, now, total=100, **settings)]

    assert marks(every=None) == [12, 21, 30, 42, 51, 60, 72, 81, 90]
    assert marks(every=None, marks=4) == [27, 51, 75]
    assert marks(every=None, marks=0) == []
    assert marks(every=25) == [27, 51, 75]


def test_checkpoints_stand_at_every_tenth_where_nothing_is_said(scripted):
    stages = [{**DMD2, "train": {**TRAIN, "images": 40}}]
    run = scripted(Script(*range(30)), stages=stages, evaluate={"every": 100}).out
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == ["00000036", "00000040"]


def test_what_is_not_finite_is_null_in_the_log(tmp_path):
    log = RunLog(Accelerator(cpu=True), tmp_path)
    log.write(stage=0, cycle=1, step=1, values={"images": 2, "grad": math.inf, "loss": math.nan})
    assert logged(tmp_path) == [{"stage": 0, "cycle": 1, "images": 2, "grad": None, "loss": None}]
