"""The exported folder: stock, verified against our own samplers, and usable by plain Diffusers."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml
from diffusers import DDIMScheduler, DiffusionPipeline
from exporting import family_student, listed
from families import FAMILIES
from huggingface_hub.errors import HTTPError
from rounding import assert_alike

from fastgen.errors import UserError
from fastgen.export.card import licence_of
from fastgen.export.export import export, push, with_scheduler
from fastgen.export.scheduler_export import scheduler_exports
from fastgen.export.unguided import unguided
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.notes import Notes
from fastgen.sampling.stock import generate


def teacher(build=tiny.ddpm, *, predicts: str = "epsilon") -> DiffusionPipeline:
    pipe = build()
    pipe.scheduler = DDIMScheduler(prediction_type=predicts, clip_sample=False)
    return pipe


def student(pipe: DiffusionPipeline, steps: tuple[int, ...], sampler: str) -> DiffusionPipeline:
    (schedule,) = scheduler_exports(pipe.scheduler, steps, sampler=sampler, emitted=listed)
    return with_scheduler(pipe, schedule.scheduler)


def exported(folder: Path, pipe: DiffusionPipeline, steps: tuple[int, ...], sampler: str, **notes: Any) -> Path:
    return export(student(pipe, steps, sampler), Notes(steps=steps, **notes), folder)


# The folder


def test_a_folder_is_stock_and_names_no_path_of_this_machine(tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path / "teacher")
    pipe = load(tmp_path / "teacher", device="cpu")
    notes = {"guidance": 1.0, "objective": "dmd2", "teacher": "teacher"}
    folder = exported(tmp_path / "student", pipe, (1,), "renoise", **notes)
    for file in [*folder.rglob("*.json"), folder / "README.md"]:
        text = file.read_text(encoding="utf-8")
        assert str(tmp_path) not in text, file
        assert "_name_or_path" not in text, file
    assert Notes.read(folder) == Notes(steps=(1,), **notes)
    assert json.loads((folder / "model_index.json").read_text())["scheduler"] == ["diffusers", "LCMScheduler"]
    assert {file.suffix for file in folder.rglob("*") if "weights" in file.name} <= {".safetensors"}
    kinds = {part.name for part in folder.iterdir() if part.is_dir()}
    assert kinds == {"scheduler", "text_encoder", "tokenizer", "unet", "vae"}


def test_a_stable_diffusion_student_loads_without_a_warning(tmp_path, caplog, recwarn):
    folder = exported(tmp_path / "student", teacher(tiny.stable_diffusion), (1,), "renoise")
    recwarn.clear()
    load(folder, device="cpu")
    assert "outdated" not in "".join([*(str(warning.message) for warning in recwarn), caplog.text])


def snippet(folder: Path) -> str:
    """The python lines of the folder's card, with its own path."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert "path/to/this/folder" in code
    return code.replace("path/to/this/folder", str(folder))


@pytest.mark.parametrize("build", [tiny.ddpm, tiny.class_conditional, tiny.stable_diffusion])
def test_the_cards_lines_draw_an_image(tmp_path, build):
    folder = exported(tmp_path / "student", teacher(build), (2, 4), "renoise")
    names: dict[str, Any] = {}
    exec(snippet(folder), names)
    assert names["image"].size in {(8, 8), (16, 16)}
    assert "num_inference_steps` 2, 4" in (folder / "README.md").read_text()
    assert "| 4 | 999, 749, 499, 249 |" in (folder / "README.md").read_text()


def test_the_card_asks_for_a_class_that_exists(tmp_path):
    pipe = teacher(lambda: tiny.consistency(num_class_embeds=2))
    folder = exported(tmp_path / "student", pipe, (1,), "renoise", num_classes=2)
    exec(snippet(folder), {})


def test_a_failed_export_keeps_the_folder_that_was_there(tmp_path, monkeypatch):
    pipe = teacher()
    folder = exported(tmp_path / "student", pipe, (1,), "renoise")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    later = student(pipe, (4,), "renoise")
    save = type(later).save_pretrained

    def save_half(self: DiffusionPipeline, path: Path, **kwargs: Any) -> None:
        save(self, path, **kwargs)
        raise OSError("the disk is full")

    monkeypatch.setattr(type(later), "save_pretrained", save_half)
    with pytest.raises(OSError, match="disk is full"):
        export(later, Notes(steps=(4,)), folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert list(tmp_path.iterdir()) == [folder]
    monkeypatch.undo()
    export(later, Notes(steps=(4,)), folder)
    assert Notes.read(folder) == Notes(steps=(4,))


PLAIN = """
import sys
import numpy
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
seeds = [torch.Generator().manual_seed(seed) for seed in (3, 4, 5)]
call = {"batch_size": 3, "class_labels": [2, 0, 9], "num_inference_steps": 4}
numpy.save(sys.argv[2], pipe(**call, generator=seeds, output_type="np").images)
assert "fastgen" not in sys.modules
"""


@pytest.mark.slow  # starts in seconds; `verify` starts one too, in tests/export/test_export_verify.py
def test_a_process_without_fastgen_draws_the_same_images(tmp_path):
    folder = exported(tmp_path / "student", teacher(tiny.class_conditional, predicts="v_prediction"), (1, 4), "renoise")
    subprocess.run([sys.executable, "-c", PLAIN, folder, tmp_path / "images.npy"], check=True, cwd=tmp_path)
    theirs = np.load(tmp_path / "images.npy")
    asked: dict[str, Any] = {"seeds": [3, 4, 5], "steps": 4, "labels": [2, 0, 9], "batch_size": 2}
    ours = torch.cat([batch.images for batch in generate(load(folder, device="cpu"), **asked)])
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - theirs).max() <= 1e-5
    assert ((theirs > 0) & (theirs < 1)).mean() > 0.2


# Guidance


def image(pipe: DiffusionPipeline, **call: Any) -> torch.Tensor:
    told = {"prompt": ["a"], "num_inference_steps": 2, "output_type": "latent", "height": 16, "width": 16, **call}
    return pipe(**told, generator=torch.Generator().manual_seed(0)).images


@pytest.mark.parametrize("name", ["stable_diffusion", "sdxl"])
def test_a_plain_call_does_not_guide_an_exported_stable_diffusion(tmp_path, name):
    pipe = FAMILIES[name].build()
    before = {key: value.clone() for key, value in pipe.unet.state_dict().items()}
    plain, guided = image(pipe, guidance_scale=1.0), image(pipe)
    export(unguided(pipe), Notes(steps=(2,)), tmp_path / "student")
    silent = load(tmp_path / "student", device="cpu")
    assert not torch.allclose(plain, guided, atol=1e-2)
    assert_alike(image(silent), plain)
    assert torch.equal(image(pipe), guided)
    assert pipe.unet.state_dict().keys() == before.keys()
    assert unguided(silent) is silent


@pytest.mark.parametrize("name", ["ddpm", "sd3", "pixart_sigma"])
def test_other_pipelines_say_their_guidance_in_the_call(name):
    pipe = FAMILIES[name].build()
    assert unguided(pipe) is pipe


CALLS = {"sd3": "guidance_scale=1, ", "z_image": "guidance_scale=0, ", "qwen_image": "true_cfg_scale=1, "}


@pytest.mark.parametrize("name", CALLS)
def test_the_card_says_how_not_to_guide_and_how_to_seed(tmp_path, name):
    made = family_student(name, (4,), "renoise")
    folder = export(made.teacher.pipe, made.notes, tmp_path / "student", made.schedules)
    text = (folder / "README.md").read_text()
    assert f"{CALLS[name]}height=16, width=16, num_inference_steps=4)" in text
    assert "torch.manual_seed(seed)" in text
    stops = ", ".join(f"{stop.timestep:.7g}" for stop in made.notes.stops[4])
    assert f"| 4 | {stops} |" in text


# Licence, metrics and the hub


def test_the_licence_base_model_and_metrics_are_in_the_card(tmp_path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "README.md").write_text("---\nlicense: other\nlicense_name: own\ntags: [x]\n---\nhello\n")
    licence = licence_of(str(tmp_path / "teacher"))
    assert licence == {"license": "other", "license_name": "own"}
    assert licence_of(str(tmp_path)) == {}
    told = {"teacher": "owner/name", "licence": licence, "metrics": {"FID": 8.345678}}
    folder = exported(tmp_path / "student", teacher(), (1,), "renoise", **told)
    front = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert front["license"] == "other"
    assert front["license_name"] == "own"
    assert front["base_model"] == "owner/name"
    assert "| FID | 8.346 |" in (folder / "README.md").read_text()
    assert Notes.read(folder).metrics == told["metrics"]
    local = exported(tmp_path / "other", teacher(), (1,), "renoise", teacher=str(tmp_path / "teacher"))
    assert "base_model" not in (local / "README.md").read_text()
    assert "Teacher: teacher." in (local / "README.md").read_text()


class Hub:
    """Stands in for the hub's client."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.calls: list[Any] = []
        self.failure = failure

    def create_repo(self, repo_id: str, **told: Any) -> None:
        if self.failure:
            raise self.failure
        self.calls.append((repo_id, told))

    def upload_folder(self, **told: Any) -> str:
        self.calls.append(told)
        return "https://hub/me/mine"


def test_a_push_makes_a_private_repository_and_uploads_the_folder(tmp_path):
    hub = Hub()
    assert push(tmp_path, "me/mine", api=hub) == "https://hub/me/mine"
    assert hub.calls[0] == ("me/mine", {"private": True, "exist_ok": True})
    assert hub.calls[1]["folder_path"] == str(tmp_path)
    for failure in (OSError("no network\nhere"), HTTPError("no network here")):
        with pytest.raises(UserError, match=r"could not be pushed to 'me/mine': no network here. It takes"):
            push(tmp_path, "me/mine", api=Hub(failure))
