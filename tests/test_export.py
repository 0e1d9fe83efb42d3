"""The exported folder: stock, verified against our own samplers, and usable by a stranger."""

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
from diffusers import DDIMScheduler, DiffusionPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, LCMScheduler

from fastgen.errors import UserError
from fastgen.export.export import export
from fastgen.export.scheduler import few_step_scheduler
from fastgen.export.verify import verify
from fastgen.models.loading import load
from fastgen.models.pipeline import Pipeline
from fastgen.notes import Notes
from fastgen.sampling.stock import generate

CPU = torch.device("cpu")
BETAS: dict[str, dict[str, Any]] = {
    "linear": {"beta_schedule": "linear"},
    "sd": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "zero-snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
}
COUNTS = {"renoise": [(1,), (4,), (1, 2, 4), (1, 2, 4, 8)], "ode": [(1, 2, 4, 5)]}


def teacher(build=tiny.ddpm, *, betas: str = "linear", predicts: str = "epsilon") -> DiffusionPipeline:
    pipe = build()
    pipe.scheduler = DDIMScheduler(**BETAS[betas], prediction_type=predicts, clip_sample=False)
    return pipe


def student(pipe: DiffusionPipeline, steps: tuple[int, ...], sampler: str) -> DiffusionPipeline:
    seen = Pipeline(pipe)
    return seen.student(seen.network.state_dict(), few_step_scheduler(pipe.scheduler, steps, sampler=sampler))


def exported(folder: Path, pipe: DiffusionPipeline, steps: tuple[int, ...], sampler: str, **notes: Any) -> Path:
    return export(student(pipe, steps, sampler), Notes(steps=steps, **notes), folder)


# Schedulers


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize(("sampler", "steps"), [(kind, steps) for kind, all_ in COUNTS.items() for steps in all_])
def test_the_emitted_grid_is_exactly_even_and_starts_at_the_noisiest_step(betas: str, sampler: str, steps):
    seen = Pipeline(student(teacher(betas=betas, predicts="v_prediction"), steps, sampler))
    for n in steps:
        assert seen.grid(n).tolist() == [(n - i) / n for i in range(n)]
        assert seen.reading.timestep(seen.grid(n)).tolist() == [1000 * (n - i) // n - 1 for i in range(n)]


@pytest.mark.parametrize("sampler", COUNTS)
@pytest.mark.parametrize(
    ("betas", "predicts"),
    [
        ("linear", "epsilon"),
        ("cosine", "epsilon"),
        ("zero-snr", "v_prediction"),
        ("sd", "sample"),
    ],
)
def test_the_stock_samples_are_ours_at_every_declared_count(tmp_path, betas: str, predicts: str, sampler: str):
    steps = COUNTS[sampler][-1]
    folder = exported(tmp_path / "student", teacher(betas=betas, predicts=predicts), steps, sampler)
    agreements = verify(folder, steps, sampler=sampler, device=CPU)
    assert [agreement.steps for agreement in agreements] == list(steps)
    assert max(agreement.difference for agreement in agreements) <= 1e-5


@pytest.mark.parametrize("sampler", COUNTS)
@pytest.mark.parametrize(("build", "betas"), [(tiny.stable_diffusion, "cosine"), (tiny.class_conditional, "sd")])
def test_latents_and_classes_agree_too(tmp_path, build, betas: str, sampler: str):
    folder = exported(tmp_path / "student", teacher(build, betas=betas), (2,), sampler)
    assert verify(folder, (2,), sampler=sampler, device=CPU)[0].difference <= 1e-5


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("sampler", COUNTS)
def test_the_students_scheduler_speaks_of_the_teachers_process_and_row(betas: str, sampler: str):
    for predicts in ("epsilon", "v_prediction", "sample"):
        given = teacher(betas=betas, predicts=predicts).scheduler
        made = few_step_scheduler(given, (1, 2), sampler=sampler)
        assert torch.equal(made.alphas_cumprod, given.alphas_cumprod)
        assert made.config.prediction_type == predicts


@pytest.mark.parametrize(
    ("sampler", "steps", "refused"), [("renoise", (3, 4), "3"), ("renoise", (3,), "3"), ("ode", (2, 7), "7")]
)
def test_counts_that_no_stock_scheduler_serves_are_refused(sampler: str, steps: tuple[int, ...], refused: str):
    with pytest.raises(UserError, match=f"cannot serve {refused} of the declared step counts"):
        few_step_scheduler(DDIMScheduler(), steps, sampler=sampler)


@pytest.mark.parametrize("scheduler", [EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler()])
def test_other_families_cannot_be_exported_yet(scheduler):
    with pytest.raises(UserError, match=f"{type(scheduler).__name__} pipelines cannot be exported yet"):
        few_step_scheduler(scheduler, (1,), sampler="ode")


WRONG = {
    "the other sampler": ("renoise", DDIMScheduler(clip_sample=False, timestep_spacing="trailing")),
    "another grid": ("renoise", LCMScheduler(clip_sample=False, original_inference_steps=5)),
    "another spacing": ("ode", DDIMScheduler(clip_sample=False, timestep_spacing="leading")),
    "clipping": ("ode", DDIMScheduler(clip_sample=True, timestep_spacing="trailing")),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_folder_with_a_wrong_scheduler_fails_verification(tmp_path, fault: str):
    sampler, wrong = WRONG[fault]
    folder = exported(tmp_path / "student", teacher(), (2,), sampler)
    verify(folder, (2,), sampler=sampler, device=CPU)
    pipe = load(folder, device="cpu")
    pipe.register_modules(scheduler=wrong)
    pipe.save_pretrained(folder)
    with pytest.raises(UserError, match=r"(?s)student does not sample as it was trained: at 2 steps.*differs"):
        verify(folder, (2,), sampler=sampler, device=CPU)


# The folder


def test_a_student_has_its_own_network_and_leaves_the_teacher_alone():
    pipe = teacher()
    before, scheduler = {name: value.clone() for name, value in pipe.unet.state_dict().items()}, pipe.scheduler
    given = {name: value + 1 for name, value in before.items()}
    made = Pipeline(pipe).student(given, LCMScheduler())
    assert isinstance(made.scheduler, LCMScheduler)
    assert all(torch.equal(value, given[name]) for name, value in made.unet.state_dict().items())
    assert pipe.scheduler is scheduler
    assert pipe.config["scheduler"][1] == "DDIMScheduler"
    assert all(torch.equal(value, before[name]) for name, value in pipe.unet.state_dict().items())


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


STRANGER = """
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


def test_a_stranger_without_fastgen_draws_the_same_images(tmp_path):
    folder = exported(tmp_path / "student", teacher(tiny.class_conditional, predicts="v_prediction"), (1, 4), "renoise")
    subprocess.run([sys.executable, "-c", STRANGER, folder, tmp_path / "images.npy"], check=True, cwd=tmp_path)
    theirs = np.load(tmp_path / "images.npy")
    asked: dict[str, Any] = {"seeds": [3, 4, 5], "steps": 4, "labels": [2, 0, 9], "batch_size": 2}
    ours = torch.cat(list(generate(load(folder, device="cpu"), **asked)))
    assert np.abs(ours.permute(0, 2, 3, 1).numpy() - theirs).max() <= 1e-5
    assert ((theirs > 0) & (theirs < 1)).mean() > 0.2
