"""What could fail only after training is found before it: exports of this class, decoding at this size."""

from pathlib import Path

import pytest
import tiny
import torch
from diffusers import LCMScheduler, StableDiffusionPipeline
from families_odd import ODD

from fastgen.config.schema import Config
from fastgen.distillation import rehearsal
from fastgen.distillation.distil import distil
from fastgen.distillation.student import Student
from fastgen.errors import UserError
from fastgen.models.pipelines.pipeline import Pipeline

UNCHECKED = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SQUARE = {"height": 16, "width": 16}


def config(folder: Path, **changes) -> Config:
    """Two updates of a one-step student from prompts."""
    (folder / "prompts.txt").write_text("a fox\na red bird\n")
    settings = {
        "out": folder / "run",
        "device": "cpu",
        "teacher": {"path": str(folder / "teacher")},
        "student": {"steps": [1]},
        "data": {"source": "prompts", "path": str(folder / "prompts.txt")},
        "log": {"previews": 1, "trackers": []},
        "stages": [{"objective": {"name": "dmd2", "gan": 0, "ratio": 1}, "train": {"images": 4, "batch": 2}}],
    }
    return Config.model_validate({**settings, **changes})


class Plain(StableDiffusionPipeline):
    """A pipeline of somebody's own, that Diffusers does not have."""


def student(pipe, folder: Path, size=SQUARE, **changes) -> Student:
    pipe.save_pretrained(folder / "teacher")
    return Student(config(folder, **changes), Pipeline(pipe, size=size), torch.device("cpu"))


@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_all_of_an_export_but_its_weights_is_written_and_nothing_stays(sharing, tmp_path, monkeypatch):
    made = student(tiny.stable_diffusion(), tmp_path, sharing=sharing, lora={"rank": 2})
    before, seen = sorted(tmp_path.rglob("*")), []
    monkeypatch.setattr(rehearsal, "_check_readable", lambda _, __, place: seen.extend(place.rglob("*")))
    rehearsal.rehearse_export(made)
    names = {file.name for file in seen}
    assert {"model_index.json", "scheduler_config.json", "README.md", "fastgen.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith(".safetensors")]
    assert sorted(tmp_path.rglob("*")) == before
    made.pipeline.pipe.unet.save_pretrained(tmp_path / "again")  # its own method is there again
    assert list((tmp_path / "again").glob("*.safetensors"))


def test_a_class_that_diffusers_does_not_have_is_refused_before_training(tmp_path):
    made = student(Plain(**tiny.stable_diffusion().components | UNCHECKED), tmp_path)
    with pytest.raises(UserError, match="a student of Plain could not be loaded by others: Diffusers has no Plain"):
        rehearsal.rehearse_export(made)


@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_whatever_an_export_raises_is_said_before_training(sharing, tmp_path, monkeypatch):
    made = student(tiny.stable_diffusion(), tmp_path, sharing=sharing, lora={"rank": 2})

    def fail(*_, **__):
        raise OSError("no such licence")

    monkeypatch.setattr("fastgen.export.lora.lora_card" if sharing == "lora" else "fastgen.export.export.card", fail)
    with pytest.raises(UserError, match="Pipeline could not be exported once it is trained: OSError: no"):
        rehearsal.rehearse_export(made)


def test_a_scheduler_that_its_file_does_not_give_back_is_refused(tmp_path, monkeypatch):
    made = student(tiny.stable_diffusion(), tmp_path, student={"steps": [2]})
    other = LCMScheduler(num_train_timesteps=500)
    monkeypatch.setattr(LCMScheduler, "from_pretrained", lambda *_, **__: other)
    with pytest.raises(UserError, match=r"LCMScheduler read from its file stops at \[.*\], and \[999.0, 499.0\] would"):
        rehearsal.rehearse_export(made)


def undecodable(pipe, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no decoding")

    monkeypatch.setattr(type(pipe.vae), "_decode", fail)
    return pipe


def test_what_cannot_be_decoded_is_trained_without_previews_and_exported(
    verified_here, tmp_path, monkeypatch, capsys, caplog
):
    caplog.set_level("INFO", "fastgen")
    undecodable(tiny.stable_diffusion(), monkeypatch).save_pretrained(tmp_path / "teacher")
    settings = config(tmp_path, student={"steps": [1], "height": 16, "width": 16}, log={"previews": 2, "trackers": []})
    distil(settings, recipes=tmp_path)
    assert (
        caplog.text.count("there will be no previews, since a sample could not be shown (NotImplementedError: no") == 1
    )
    assert "no preview could be made" not in capsys.readouterr().err
    assert "verified" in caplog.text


def test_what_cannot_be_decoded_is_refused_where_training_reads_images(tmp_path, monkeypatch):
    stages = [{"objective": {"name": "pretrain"}, "train": {"images": 4, "batch": 2}}]
    pipe = undecodable(tiny.stable_diffusion(), monkeypatch)
    made = student(pipe, tmp_path, stages=stages, log={"previews": 0, "trackers": []})
    with pytest.raises(UserError, match=r"Pipeline cannot be decoded \(NotImplementedError: no decoding\)"):
        rehearsal.rehearse_pictures(made, warn=print)


def test_nothing_is_decoded_where_no_picture_is_wanted(tmp_path, monkeypatch):
    made = student(undecodable(tiny.stable_diffusion(), monkeypatch), tmp_path, log={"previews": 0, "trackers": []})
    assert not rehearsal.rehearse_pictures(made, warn=pytest.fail)


def test_an_autoencoder_of_tiles_only_is_switched_to_them(tmp_path, monkeypatch):
    said, pipe = [], tiny.stable_diffusion()
    whole = type(pipe.vae)._decode

    def in_tiles(vae, z, return_dict=True):
        if not vae.use_tiling:
            raise NotImplementedError("only in tiles")
        return whole(vae, z, return_dict)

    monkeypatch.setattr(type(pipe.vae), "_decode", in_tiles)
    made = student(pipe, tmp_path)
    assert rehearsal.rehearse_pictures(made, warn=said.append)
    assert pipe.vae.use_tiling
    assert len(said) == 1
    assert "works in tiles from here on" in said[0]


@pytest.mark.slow
def test_allegro_is_distilled_with_previews(verified_here, few_previews, tmp_path):
    family = ODD["allegro"]
    family.build().save_pretrained(tmp_path / "teacher")
    settings = config(tmp_path, student={"steps": [1], "height": 16, "width": 16, "frames": 8})
    distil(settings, recipes=tmp_path)
    assert list((tmp_path / "run/previews").glob("*.png"))
