"""Every family from a folder to verified exports, as `train.py` does it: data-free DMD2, with both sharings."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES, Family

from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.export.lora import has_loader
from fastgen.models.pipelines.components import network_of
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.notes import Notes

REFUSED = {"cogview4", "latte"}
TRAINED = [name for name in FAMILIES if name not in REFUSED]
FAST = {  # each kind of sample and of call, once, beside those of test_objectives_train; the others train for minutes
    "ddpm": "full",
    "dit": "lora",
    "flux": "lora",
    "sana_sprint": "full",
    "wan": "lora",
}


def settings(family: Family, folder: Path, sharing: str) -> Config:
    """Two generator updates of a two-step student."""
    data = {"source": "prompts", "path": str(folder / "prompts.txt")}
    if family.name in ("ddpm", "consistency", "dit"):
        data = {"source": "noise", "num_classes": {"ddpm": None, "consistency": 10, "dit": 1000}[family.name]}
    return Config.model_validate(
        {
            "out": folder / sharing,
            "device": "cpu",
            "cache": folder / "cache",
            "teacher": {"path": str(folder / "teacher")},
            "student": {"steps": [2]},
            "sharing": sharing,
            "lora": {"rank": 2, "alpha": 3},
            "data": data,
            "log": {"previews": 1, "trackers": []},
            "stages": [
                {
                    "objective": {"name": "dmd2", "gan": 0, "ratio": 1},
                    "train": {"images": 4, "batch": 2, "optim": {"lr": 1e-3}},
                }
            ],
        }
    )


def runs() -> Iterator[object]:
    """Each family with a shared network, which exports a LoRA beside the whole, and with networks of their own."""
    for name, sharing in product(TRAINED, ("lora", "full")):
        slow = FAST.get(name) != sharing
        yield pytest.param(name, sharing, id=f"{name}-{sharing}", marks=[pytest.mark.slow] * slow)


@pytest.mark.usefixtures("verified_here", "few_previews")
@pytest.mark.parametrize(("name", "sharing"), runs())
def test_a_family_is_distilled_and_its_exports_sample_as_trained(name, sharing, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO", "fastgen")
    family = FAMILIES[name]
    monkeypatch.setattr("fastgen.distillation.teacher.size_arguments", lambda *_, **__: dict(family.size))
    teacher = family.build()
    teacher.save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a fox\na red bird in the snow\ntwo\n")
    student = distil(settings(family, tmp_path, sharing), recipes=tmp_path)
    exports = 2 if sharing == "lora" and has_loader(teacher) else 1
    assert caplog.text.count("verified") == exports, caplog.text
    places = [student] if (student / Notes.FILE).exists() else sorted(student.glob("*step"))
    for place in places:
        assert changed(load(place, device="cpu"), teacher)
        assert Notes.read(place).stops[2]
    assert list((tmp_path / sharing / "previews").glob("*.png"))


def changed(student: DiffusionPipeline, teacher: DiffusionPipeline) -> bool:
    before, after = (network_of(pipe).state_dict() for pipe in (teacher, student))
    return any(not torch.equal(before[key], after[key]) for key in before)
