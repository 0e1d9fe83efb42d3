"""The configs of text to image on a tiny pipeline with a LoRA of the user, end to end: both exports and their cards."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from config_runs import CONFIGS, run_config
from diffusers import DiffusionPipeline
from families import FAMILIES

from fastgen.cli import main
from fastgen.models.pipelines.notes import Notes

pytestmark = pytest.mark.usefixtures("verified_here", "few_previews")


@pytest.mark.parametrize(
    ("config", "kohya"),
    [
        pytest.param("sd15", True, marks=pytest.mark.slow),  # below, SDXL
        pytest.param("flux", True, marks=pytest.mark.slow),
        pytest.param("sana", False, marks=pytest.mark.slow),
    ],
)
def test_anybodys_pipeline_with_a_lora_becomes_verified_exports(config, kohya, tmp_path, request, capsys):
    if config == "sana":
        request.getfixturevalue("without_binning")
    out = run_config(config, tmp_path)
    served = {"sd15": 3, "flux": 1, "sana": 2}[config]
    assert capsys.readouterr().out.count("verified") == 2 * served
    assert list((out / "previews").glob("*.png"))
    card = (out / "student-lora" / "README.md").read_text()
    assert "set_adapters" in card
    written = {file.name for file in (out / "student-lora").glob("*.safetensors")}
    assert written == {"pytorch_lora_weights.safetensors"} | ({"kohya_lora_weights.safetensors"} if kohya else set())
    assert str(tmp_path) not in card


def test_kohya_keys_that_nobody_could_read_are_refused_before_training(tmp_path, capsys):
    family = FAMILIES["flux"]
    family.build().save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a fox\n")
    options = [f"teacher.path={tmp_path / 'teacher'}", f"data.prompts={tmp_path / 'prompts.txt'}", "device=cpu"]
    options += ["student.height=16", "student.width=16", f"out={tmp_path / 'run'}", "lora.keys=[kohya]", "cache=null"]
    options += ["lora.targets=[to_q,x_embedder]"]
    assert main(["train", "--config", str(CONFIGS / "flux" / "dmd2_4step_lora.yaml"), *options]) == 2
    assert "lora.targets inside the blocks alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def snippet(card: Path, places: dict[str, str]) -> str:
    (code, *_) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    for shown, place in places.items():
        assert shown in code
        code = code.replace(shown, place)
    return code


@pytest.mark.parametrize("alone", [False, pytest.param(True, marks=pytest.mark.slow)])  # a process starts in seconds
def test_sdxl_with_a_lora_of_the_user_is_distilled_and_diffusers_loads_both_exports(alone, tmp_path, capsys):
    out = run_config("sdxl", tmp_path)
    said = capsys.readouterr().out
    assert said.count("verified") == 2
    assert Notes.read(out / "student").steps == (4,)
    assert list((out / "previews").glob("*.png"))
    assert (out / "student-lora" / "kohya_lora_weights.safetensors").is_file()
    full = snippet(out / "student" / "README.md", {"path/to/this/folder": str(out / "student")})
    places = {"path/to/teacher": str(tmp_path / "teacher"), "path/to/style": str(tmp_path / "style")}
    places["path/to/this/folder"] = str(out / "student-lora")
    lora = snippet(out / "student-lora" / "README.md", places)
    both = "import torch"
    for name, code in {"full": full, "lora": lora}.items():
        both += f"\n{code.replace('num_inference', 'generator=torch.manual_seed(3), num_inference')}"
        both += f"\nimage.save(r'{tmp_path / name}.png')\ndel image"
    if alone:
        both += "\nimport sys\nassert 'fastgen' not in sys.modules"
        subprocess.run([sys.executable, "-c", both], check=True, cwd=tmp_path, capture_output=True)
    else:
        exec(both, {})
    assert (tmp_path / "full.png").read_bytes() == (tmp_path / "lora.png").read_bytes()
    teacher = DiffusionPipeline.from_pretrained(tmp_path / "teacher").unet.state_dict()
    student = DiffusionPipeline.from_pretrained(out / "student").unet.state_dict()
    assert any(not torch.equal(teacher[key], student[key]) for key in teacher)
