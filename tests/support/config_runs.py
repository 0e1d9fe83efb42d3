"""Shipped configs that take anybody's pipeline, run on a tiny one."""

from pathlib import Path

from diffusers import DiffusionPipeline
from families import FAMILIES
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

from fastgen.cli import main
from fastgen.config.yaml_file import load
from fastgen.models.pipelines.components import denoiser_name

CONFIGS = Path(__file__).parents[2] / "configs"
ANYBODYS = {
    "sdxl": "sdxl",
    "sd15": "stable_diffusion",
    "sd21": "stable_diffusion",
    "flux": "flux",
    "sana": "sana",
    "qwen_image": "qwen_image",
    "wan": "wan_of_two",
    "wan21": "wan",
}


def save_images(folder: Path, *, classes: int = 0) -> Path:
    """Four pictures with captions, or one of each class."""
    for i in range(classes or 4):
        place = folder / (str(i) if classes else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * i, 90, 120)).save(place / f"{i}.png")
        if not classes:
            (place / f"{i}.txt").write_text("a fox")
    return folder


def save_style(pipe: DiffusionPipeline, folder: Path) -> None:
    """A user's LoRA of rank 2 on some attention layers."""
    part = denoiser_name(pipe)
    network = getattr(pipe, part)
    network.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.save_lora_weights(folder, **{f"{part}_lora_layers": get_peft_model_state_dict(network)})


def run_config(config: str, folder: Path, *more: str, name: str = "dmd2_4step_lora") -> Path:
    """`train.py` as the config's header says, made short and small; the folder of the run."""
    family = FAMILIES[ANYBODYS[config]]
    family.build().save_pretrained(folder / "teacher")
    save_style(family.build(), folder / "style")
    (folder / "prompts.txt").write_text("a fox\na red bird in the snow\ntwo\n")
    side = 32 if config == "sana" else 16
    file, out = CONFIGS / config / f"{name}.yaml", folder / "run"
    small = ["train.images=4", "train.batch=2", "train.micro_batch=1", "train.precision=fp32"]
    small += ["lora.rank=4"] * (load(file).sharing != "full")
    video = config.startswith("wan")  # and no user's LoRA, which two denoisers would not take
    options = [
        f"teacher.path={folder / 'teacher'}",
        f"data={{source: prompts, path: {folder / 'prompts.txt'}}}",
        "student.frames=5" if video else f"teacher.loras=[{{path: {folder / 'style'}, weight: 0.7}}]",
        f"student.height={side}",
        f"student.width={side}",
        f"cache={folder / 'cache'}",
        f"out={out}",
        "log.previews=1",
        "device=cpu",
        "pairs={count: 4, steps: 2}",
    ]
    assert main(["train", "--config", str(file), *options, *small, *more]) == 0
    return out
