"""Runs of the trajectory objectives on small stock pipelines, and what they leave."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tiny
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES
from PIL import Image
from safetensors.torch import load_file
from small_vision import write_vision
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """What an objective has to log, the student that it needs, its settings, and whether classes are not enough."""

    losses: set[str]
    student: str = "{steps: [2]}"
    settings: str = ""
    process: str = "native"
    state: tuple[str, ...] = ()
    ema: float = 0.0
    lora: str = "{rank: 2, alpha: 3}"
    more: str = ""
    prompts: bool = False


ODE = "{steps: [2], sampler: ode}"
CONSISTENCY, SHORTCUT = {"generator/consistency"}, {"generator/shortcut"}
ADVERSARIES = {"generator/gan", "discriminator/gan"}
RIVALS = {"generator/consistency", "generator/gan", "discriminator/gan"}
REWARDED = "rewards: {name: 'light.py:Light'}\njudges: [{name: 'light.py:Light'}]"
REWARD = '''
from dataclasses import dataclass


@dataclass(frozen=True)
class Light:
    """How light pictures are."""

    def load(self, device):
        return lambda images, asked: images.mean((1, 2, 3))
'''
CASES = {
    "ladd": Case(ADVERSARIES, more="discriminator: {layers: blocks}"),
    "add": Case(
        ADVERSARIES | {"generator/distillation", "discriminator/feature_r1"},
        more="discriminator: {network: FOLDER/vision, blocks: [2, 4]}",
    ),
    "gdd": Case(
        ADVERSARIES | {"discriminator/feature_r1"}, "{steps: [1]}", more="discriminator: {network: FOLDER/vision}"
    ),
    "apt": Case(ADVERSARIES | {"discriminator/r1"}, "{steps: [1]}"),
    "lightning": Case(ADVERSARIES, ODE, more="discriminator: {backbone: own}"),
    "cd": Case(CONSISTENCY, ema=0.95),
    "ct": Case(CONSISTENCY, "{steps: [1]}"),
    "lcm": Case(CONSISTENCY, "{steps: [1, 2], guidance: 8.5}", ema=0.95),
    "scott": Case(RIVALS, "{steps: [1, 2], guidance: 8.5}", ema=0.95),
    "scflow": Case(
        {*RIVALS, "generator/back", "generator/straight"},
        "{steps: [1, 2], sampler: ode}",
        ema=0.9,
    ),
    "scm": Case({"generator/tangent"}, state=("log_variance",)),
    "sana_sprint": Case(
        {"generator/tangent", "generator/gan", "discriminator/gan"},
        "{steps: [2], guidance: 4.5}",
        state=("log_variance",),
    ),
    "rcm": Case({"generator/dm", "generator/tangent", "fake_score/denoise"}),
    "pcm": Case(RIVALS, ODE),
    "tscd": Case(CONSISTENCY, ODE, "segments: 4", ema=0.95),
    "tdd": Case(RIVALS, "{steps: [1, 2], sampler: ode}"),
    "std": Case(RIVALS, ODE, "grid: 4", more="discriminator: {network: FOLDER/vision}"),
    "meanflow": Case({"generator/mean_velocity"}, ODE, "diagonal: 0", process="flow"),
    "improved_meanflow": Case({"generator/mean_velocity"}, ODE, "diagonal: 0", process="flow"),
    "alphaflow": Case({"generator/mean_velocity"}, ODE, process="flow"),
    "mdt_dist": Case({"generator/matching", "generator/distillation"}, "{steps: [1]}", process="flow"),
    "ayf": Case({"generator/map"}, ODE, "warmup: 4", process="flow"),
    "ctm": Case({"generator/denoise", *RIVALS}, ema=0.999),
    "imm": Case({"generator/moments"}, ODE, "group: 2"),
    "shortcut": Case(SHORTCUT, ODE, "bootstrapped: 0.5, levels: 2", process="flow", ema=0.999),
    "self_shortcut": Case(SHORTCUT, "{steps: [1, 2], sampler: ode}", ema=0.999),
    "progressive": Case({"generator/progressive"}, ODE),
    "perflow": Case({"generator/reflow"}, ODE, "substeps: 2"),
    "pdd": Case({"generator/velocity"}, "{steps: [1], sampler: ode}", "heads: 8", lora="{rank: 16, alpha: 24}"),
    "freeflow": Case(
        {"generator/prediction", "generator/correction", "fake_score/denoise"},
        "{steps: [1], sampler: ode}",
        process="flow",
    ),
    "boot": Case({"generator/bootstrapping"}, "{steps: [1], sampler: ode}", "steps: 4"),
    "tbcm": Case({"generator/tangent"}, "{steps: [2], guidance: 4.5}", "route: 3", state=("log_variance",)),
    "twinflow": Case({"generator/flow", "generator/matching"}, "{steps: [2]}", process="flow"),
    "guidance_distillation": Case({"generator/guided"}, "{steps: [2], sampler: ode, guidance: 3}"),
    "finetune": Case({"generator/denoise", "generator/drift"}),
    "reflow": Case({"generator/reflow"}, ODE),
    "d_opsd": Case({"generator/context"}, ema=0.9999, prompts=True),
    "kd": Case({"generator/regression"}, "{steps: [1]}"),
    "refl": Case({"generator/reward", "generator/reference"}, more=REWARDED),
    "advantage_flow": Case({"generator/advantage"}, settings="group: 2", ema=0.9, more=REWARDED),
}


def write(folder: Path, kind: str, name: str, *, stages: str = "", rate: float = 1e-3) -> Path:
    """The config of two cycles, and all that it names: teacher and images."""
    case, size = CASES[name], ""
    if kind == "classes":
        tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
        data, sharing = "{source: digits}", "full"
    else:
        FAMILIES[kind].build().save_pretrained(folder / "teacher")
        data, sharing, size = pictures(folder), "lora", ", height: 16, width: 16"
    objective = f"objective: {{name: {name}{', ' * bool(case.settings)}{case.settings}}}"
    (folder / "light.py").write_text(REWARD)
    if "vision" in case.more:
        write_vision(folder / "vision")
    file = folder / "run.yaml"
    file.write_text(f"""\
out: {folder}/out
device: cpu
cache: null
teacher: {{path: {folder}/teacher{", num_classes: 10, null_label: 10" if kind == "classes" else ""}}}
student: {case.student[:-1]}{size}}}
process: {case.process}
sharing: {sharing}
lora: {case.lora}
data: {data}
pairs: {{count: 4, steps: 2}}
{stages or objective}
{case.more.replace("FOLDER", str(folder))}
train: {{images: 4, batch: 2, ema: null, optim: {{lr: {rate}}}}}
checkpoints: {{every: 2, keep: 9}}
log: {{previews: 0, every: 1, trackers: []}}
""")
    return file


def pictures(folder: Path) -> str:
    (folder / "images").mkdir()
    for i, prompt in enumerate(("a fox", "a red bird in the snow", "two")):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        (folder / f"images/{i}.txt").write_text(prompt)
    return f"{{source: folder, path: {folder}/images, size: 16}}"


def weights(pipe: DiffusionPipeline) -> dict[str, Tensor]:
    return (pipe.components.get("transformer") or pipe.unet).state_dict()


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one
    assert one.keys() <= other.keys()  # an exported network may have one more, so that LCM's pipeline asks no guidance
    return any(not torch.equal(one[key], other[key]) for key in one)


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(line: dict[str, float]) -> dict[str, float]:
    figures = {key: value for key, value in line.items() if "/" in key and not key.startswith("rewards/")}
    return {key: value for key, value in figures.items() if key.split("/")[1] not in ("grad", "lr")}


def saved(out: Path) -> list[dict[str, dict[str, Tensor]]]:
    """The tensors of each role in each checkpoint, the oldest first."""
    places = sorted((out / "checkpoints").iterdir())
    return [{file.stem: load_file(file) for file in place.glob("*.safetensors")} for place in places]


def exported(out: Path, *, steps: int = 2) -> Path:
    """The student's folder, or that of a step count where each has its own."""
    folder = out / "student"
    return folder if (folder / "model_index.json").exists() else folder / f"{steps}step"
