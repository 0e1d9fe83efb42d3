"""What is kept of a batch that was out of line: its samples' numbers in the log, the batch in a folder, its cause."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import breaking
import pytest
import small_run
import tiny
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from fastgen.config.guards import GuardsConfig
from fastgen.data import ImageFolder, Loader
from fastgen.engine import guard, incidents
from fastgen.engine.evidence import evidence_of
from fastgen.engine.incidents import Incidents
from fastgen.engine.log import RunLog
from fastgen.engine.stage import Stage
from fastgen.errors import NonFiniteError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed

POISONED = 7


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


@pytest.fixture
def notes(tmp_path: Path) -> Incidents:
    return Incidents(RunLog(Accelerator(cpu=True), tmp_path), tmp_path / "incidents")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def cycle(stage: Stage, notes: Incidents) -> None:
    with notes.noted(stage):
        stage.cycle()


def spiking(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *at: int) -> Stage:
    monkeypatch.setattr(guard, "LEAST", 2)
    return small_run.stage(pipeline, breaking.Spiking(at=at), guards=GuardsConfig(spikes="skip"))


def test_a_spiked_batch_is_logged_by_its_samples_and_kept(
    pipeline: Pipeline, notes: Incidents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    stage = spiking(pipeline, monkeypatch, 2)
    for _ in range(4):
        cycle(stage, notes)
    assert stage.feed.pairs is not None
    numbers = stage.feed.pairs.loader.numbers(range(8, 12))
    [line] = lines(tmp_path)
    assert (line["stage"], line["cycle"], line["samples"]) == (0, 3, numbers)
    assert "generator/regression spikes to" in line["incident"]
    folder = tmp_path / "incidents" / "0-00000002-generator"
    about, tensors = json.loads((folder / "batch.json").read_text()), load_file(folder / "batch.safetensors")
    assert about["samples"] == numbers
    assert about["noise"] == {"seed": 0, "stage": 0, "cycle": 2, "turn": 0}
    assert tensors["labels"].tolist() == [number % 10 for number in numbers]
    assert torch.equal(tensors["eps"], stage.feed.pairs.eps[8:12])
    said = capsys.readouterr().err
    assert f"{numbers[0]} (class {numbers[0] % 10})" in said
    assert str(folder) in said


def test_kept_batches_are_few_and_small(
    pipeline: Pipeline, notes: Incidents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.setattr(incidents, "MOST", 1)
    monkeypatch.setattr(incidents, "MOST_BYTES", 2 * (8 + 3 * 3 * 8 * 8 * 4))  # a label, an image and a pair each
    stage = spiking(pipeline, monkeypatch, 2, 3)
    for _ in range(4):
        cycle(stage, notes)
    [folder] = (tmp_path / "incidents").iterdir()
    assert json.loads((folder / "batch.json").read_text())["saved"] == 2
    assert len(load_file(folder / "batch.safetensors")["eps"]) == 2
    assert len(lines(tmp_path)) == 2
    assert "holds 1 batches already" in capsys.readouterr().err


def poisoned(pipeline: Callable[[], Any]) -> Pipeline:
    pipe = pipeline()
    with torch.no_grad():
        pipe.unet.class_embedding.weight[POISONED] = torch.nan
    return Pipeline(pipe)


def test_nan_of_one_class_is_named_with_its_weights_and_samples(notes: Incidents, tmp_path: Path):
    """Everything else of the teacher is sound, so that the run goes well until that class is drawn."""
    stage = small_run.stage(poisoned(tiny.class_conditional), DMD2(ratio=1, guidance=Fixed(1.0), gan=GAN(0.0)))

    def train() -> None:
        for _ in range(10):
            cycle(stage, notes)

    with pytest.raises(NonFiniteError) as error:
        train()
    said = str(error.value)
    assert "class_embedding.weight in row 7 of real_score" in said
    assert "Where real_score is not finite: " in said
    assert f"all of class {POISONED}" in said
    assert "Nothing was updated" in said
    [line] = lines(tmp_path)
    assert any(number % 10 == POISONED for number in line["samples"])
    assert not said.endswith(".")


def test_files_are_named_where_samples_have_any(tmp_path: Path, pipeline: Pipeline):
    for number in range(3):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    source = ImageFolder(tmp_path, size=8)
    stage = small_run.stage(pipeline, DMD2(ratio=1, guidance=Fixed(1.0), gan=GAN(0.0)))
    stage.feed.loader = Loader(source, seed=0)
    found = evidence_of(stage.feed, range(3))
    assert sorted(found.told()) == [str(tmp_path / f"{number}.png") for number in range(3)]
