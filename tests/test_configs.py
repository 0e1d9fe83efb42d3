"""The shipped configs: each can be planned, and those that take anybody's pipeline run on a tiny one, end to end."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from fastgen.cli import main
from fastgen.models.watch import denoiser_name
from fastgen.notes import Notes

CONFIGS = Path(__file__).parents[1] / "configs"
ANYBODYS = {"sdxl": "sdxl", "sd15": "stable_diffusion", "flux": "flux", "sana": "sana"}
pytestmark = pytest.mark.usefixtures("near_stranger", "few_previews")


@pytest.mark.parametrize("config", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_shipped_config_can_be_planned(config: Path, capsys):
    assert main(["train", "--config", str(config), "--dry-run"]) == 0
    assert "updates: generator" in capsys.readouterr().out


def save_style(pipe: DiffusionPipeline, folder: Path) -> None:
    """A user's LoRA of rank 2 on some attention layers."""
    part = denoiser_name(pipe)
    network = getattr(pipe, part)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(folder, **{f"{part}_lora_layers": get_peft_model_state_dict(network)})


def run(config: str, folder: Path, *more: str) -> Path:
    """`train.py` as the config's header says, made short and small; the folder of the run."""
    family = FAMILIES[ANYBODYS[config]]
    family.build().save_pretrained(folder / "teacher")
    save_style(family.build(), folder / "style")
    (folder / "prompts.txt").write_text("a fox\na red bird in the snow\ntwo\n")
    side = 32 if config == "sana" else 16
    out = folder / "run"
    small = ["train.images=4", "train.batch=2", "train.micro_batch=1", "train.precision=fp32", "lora.rank=3"]
    options = [
        f"teacher.path={folder / 'teacher'}",
        f"data.prompts={folder / 'prompts.txt'}",
        f"teacher.loras=[{{path: {folder / 'style'}, weight: 0.7}}]",
        f"student.height={side}",
        f"student.width={side}",
        f"cache={folder / 'cache'}",
        f"out={out}",
        "log.previews=1",
        "device=cpu",
    ]
    assert main(["train", "--config", str(CONFIGS / config / "dmd2_4step_lora.yaml"), *options, *small, *more]) == 0
    return out


@pytest.fixture
def without_binning(monkeypatch):
    """Sana's call moves any size to one of its own, all of them large."""
    monkeypatch.setattr("fastgen.distil.size_arguments", lambda _, height, width, **__: dict(FAMILIES["sana"].size))


@pytest.mark.parametrize(("config", "kohya"), [("sd15", True), ("flux", False), ("sana", False)])
def test_anybodys_pipeline_with_a_lora_becomes_verified_exports(config, kohya, tmp_path, request, capsys):
    if config == "sana":
        request.getfixturevalue("without_binning")
    out = run(config, tmp_path, *["lora.keys=[diffusers,kohya]"] * kohya)
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
    assert main(["train", "--config", str(CONFIGS / "flux" / "dmd2_4step_lora.yaml"), *options]) == 2
    assert "lora.targets on the attention alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def snippet(card: Path, places: dict[str, str]) -> str:
    (code, *_) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    for shown, place in places.items():
        assert shown in code
        code = code.replace(shown, place)
    return code


def test_sdxl_with_a_lora_of_the_user_is_distilled_and_strangers_load_both_exports(tmp_path, capsys):
    out = run("sdxl", tmp_path)
    said = capsys.readouterr().out
    assert said.count("verified") == 2
    assert Notes.read(out / "student").steps == (4,)
    full = snippet(out / "student" / "README.md", {"path/to/this/folder": str(out / "student")})
    places = {"path/to/teacher": str(tmp_path / "teacher"), "path/to/style": str(tmp_path / "style")}
    places["path/to/this/folder"] = str(out / "student-lora")
    lora = snippet(out / "student-lora" / "README.md", places)
    both = "import sys, torch"
    for name, code in {"full": full, "lora": lora}.items():
        both += f"\n{code.replace('num_inference', 'generator=torch.manual_seed(3), num_inference')}"
        both += f"\nimage.save(r'{tmp_path / name}.png')\ndel image"
    both += "\nassert 'fastgen' not in sys.modules"
    subprocess.run([sys.executable, "-c", both], check=True, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "full.png").read_bytes() == (tmp_path / "lora.png").read_bytes()
    teacher = DiffusionPipeline.from_pretrained(tmp_path / "teacher").unet.state_dict()
    student = DiffusionPipeline.from_pretrained(out / "student").unet.state_dict()
    assert any(not torch.equal(teacher[key], student[key]) for key in teacher)
