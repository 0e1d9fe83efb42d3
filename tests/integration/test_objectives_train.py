"""Every distribution-matching objective on stock pipelines, as `fastgen train` does it: from a teacher to an export.

Classes in pixels with whole networks, SDXL and a flow model with LoRAs on a shared one.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_run
import tiny
import torch
from diffusers import DiffusionPipeline
from families import FAMILIES
from PIL import Image
from safetensors.torch import load_file
from trajectory_runs import REWARD, REWARDED

from fastgen.cli import main
from fastgen.config import yaml_file as configfile
from fastgen.models.pipelines.loading import load
from fastgen.objectives import OBJECTIVES, roles_of

pytestmark = pytest.mark.usefixtures("verified_here")


@dataclass(frozen=True)
class Case:
    """What an objective has to log in its turns, and the student that it needs."""

    generator: set[str]
    fake: frozenset[str] = frozenset({"denoise"})
    student: str = "{steps: [1]}"
    settings: str = ""
    more: str = ""


GAN = frozenset({"denoise", "gan"})
SLOPES = GAN | {"r1", "r2"}
ODE = "{steps: [2], sampler: ode}"
CASES = {
    "vsd": Case({"dm"}),
    "swiftbrush": Case({"dm"}),
    "diff_instruct": Case({"dm"}),
    "dmd": Case({"dm", "regression"}),
    "dmd2": Case({"dm", "gan"}, GAN, "{steps: [2]}", "guidance: 2, step_aware: true"),
    "f_distill": Case({"dm", "gan"}, GAN, "{steps: [2]}"),
    "smd": Case({"dm", "gan"}, GAN),
    "tdm": Case({"dm"}, student=ODE, settings="guidance: 2, huber: 0.001"),
    "phased_dmd": Case({"dm"}, student=ODE),
    "decoupled_dmd": Case({"dm", "augmentation"}, student="{steps: [2]}"),
    "dp_dmd": Case({"dm", "diversity"}, student=ODE, settings="grid: 4, anchor: 1"),
    "anyflow": Case({"dm"}, student=ODE),
    "asd": Case({"dm", "gan"}, SLOPES, "{steps: [4]}"),
    "emd": Case({"dm"}, settings="corrections: 2"),
    "dmdr": Case({"dm", "reward"}, student="{steps: [2]}", settings="form: grpo, group: 2", more=REWARDED),
    "sid": Case({"sid"}),
    "sida": Case({"sid", "gan"}, GAN),
    "sid_lsg": Case({"sid"}),
    "sfd": Case({"sid"}, settings="instead: {'3': '5'}"),
    "sid_few_step": Case({"sid", "gan"}, GAN, "{steps: [2]}"),
    "sim": Case({"sim"}),
    "uni_instruct": Case({"fisher", "gan"}, GAN),
}
USUAL = {  # the pipeline that each is tried on
    "classes": (
        "diff_instruct",
        "dmd",
        "emd",
        "f_distill",
        "sfd",
        "sid",
        "sid_few_step",
        "sida",
        "sim",
        "smd",
        "tdm",
        "uni_instruct",
    ),
    "sdxl": ("asd", "dmd2"),
    "sd3": ("anyflow", "decoupled_dmd", "dmdr", "dp_dmd", "phased_dmd", "sid_lsg", "swiftbrush", "vsd"),
}
QUICK = {"dmd", "dmd2", "f_distill", "phased_dmd", "swiftbrush", "uni_instruct"}
"""One for each part that runs have beside scores: pairs; GAN, told steps and SDXL; means of ratios; phases; guidance of
both scores with dropped conditions; an integrand. The others put the same parts together, by losses that
tests/objectives has."""


def write(folder: Path, kind: str, name: str) -> Path:
    """The config of two cycles, and all that it names: teacher, prompts, images."""
    case, images = CASES[name], OBJECTIVES[name]().needs.images
    if kind == "classes":
        tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
        data, sharing = "{source: digits}" if images else "{source: noise, num_classes: 10}", "full"
    else:
        FAMILIES[kind].build().save_pretrained(folder / "teacher")
        data, sharing = pictures(folder, images=images), "lora"
    size = "" if kind == "classes" else ", height: 16, width: 16"
    (folder / "light.py").write_text(REWARD)
    file = folder / "run.yaml"
    file.write_text(f"""\
out: {folder}/out
device: cpu
cache: null
teacher: {{path: {folder}/teacher{", num_classes: 10, null_label: 10" if kind == "classes" else ""}}}
student: {case.student[:-1]}{size}}}
sharing: {sharing}
lora: {{rank: 2, alpha: 3}}
data: {data}
pairs: {{count: 4, steps: 2}}
objective: {{name: {name}, ratio: 1{", " * bool(case.settings)}{case.settings}}}
{case.more}
train: {{images: 4, batch: 2, ema: 0.5, optim: {{lr: 1e-3}}}}
checkpoints: {{every: 2}}
log: {{previews: 0, every: 1, trackers: []}}
""")
    return file


def pictures(folder: Path, *, images: bool) -> str:
    prompts = ("a fox", "a red bird in the snow", "3 of them")
    if not images:
        (folder / "prompts.txt").write_text("\n".join(prompts))
        return f"{{source: prompts, path: {folder}/prompts.txt}}"
    (folder / "images").mkdir()
    for i, prompt in enumerate(prompts):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"images/{i}.png")
        (folder / f"images/{i}.txt").write_text(prompt)
    return f"{{source: folder, path: {folder}/images, size: 16}}"


def weights(pipe: DiffusionPipeline) -> dict[str, torch.Tensor]:
    return (pipe.components.get("transformer") or pipe.unet).state_dict()


def differ(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one
    assert one.keys() <= other.keys()  # an exported network may have one more, so that LCM's pipeline asks no guidance
    return any(not torch.equal(one[key], other[key]) for key in one)


def log(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def products():
    for kind, usual in USUAL.items():
        for name in CASES:
            slow = name not in usual or name not in QUICK
            yield pytest.param(kind, name, id=f"{name}-{kind}", marks=[pytest.mark.slow] * slow)


@pytest.mark.parametrize(("kind", "name"), products())
def test_an_objective_makes_a_student_of_a_stock_pipeline(kind, name, tmp_path, capsys):
    file, out, case = write(tmp_path, kind, name), tmp_path / "out", CASES[name]
    assert main(["train", "--config", str(file)]) == 0, capsys.readouterr().err
    assert "verified" in capsys.readouterr().out
    teacher, student = (weights(load(folder, device="cpu")) for folder in (tmp_path / "teacher", out / "student"))
    assert differ(teacher, student)
    lines = log(out)
    assert len(lines) == 2
    for line in lines:
        for role, terms in (("generator", case.generator), ("fake_score", case.fake)):
            assert {key for key in line if key.startswith(f"{role}/") and key.split("/")[1] in KNOWN} == {
                f"{role}/{term}" for term in terms
            }
            assert all(line[f"{role}/{term}"] is not None for term in terms)
    first, second = sorted((out / "checkpoints").iterdir())
    for role in roles_of(OBJECTIVES[name]()):
        assert differ(*(load_file(place / f"{role}.safetensors") for place in (first, second))), role


KNOWN = {term for case in CASES.values() for term in case.generator | case.fake}


def test_the_pipelines_share_the_objectives_out():
    assert sorted(name for names in USUAL.values() for name in names) == sorted(CASES)


# A target with embeddings is killed among the fast tests, in test_trajectory_stages.
@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        pytest.param("tdm", "classes", ["called", "landed"], marks=pytest.mark.slow),
        pytest.param("dmd2", "classes", ["called"], marks=pytest.mark.slow),
        pytest.param("phased_dmd", "sd3", ["landed"], marks=pytest.mark.slow),
    ],
)
def test_a_fake_score_with_embeddings_goes_on_as_if_nothing_had_happened(name, kind, told, tmp_path):
    file = write(tmp_path, kind, name)
    whole, broken = (configfile.load(file, ["train.images=8", f"out={tmp_path / out}"]) for out in ("whole", "broken"))
    assert carried_out(whole) == 0
    assert carried_out(broken, at=(0, 2)) == -9
    assert carried_out(broken, resume=True) == 0
    assert (whole.out / "log.jsonl").read_bytes() == (broken.out / "log.jsonl").read_bytes()
    last, other = (sorted((run.out / "checkpoints").iterdir())[-1] for run in (whole, broken))
    for role in ("generator", "fake_score"):
        assert not differ(*(load_file(place / f"{role}.safetensors") for place in (last, other)))
    fake = load_file(last / "fake_score.safetensors")
    for scalar in told:
        weight = next(w for key, w in fake.items() if key.endswith(f"embed.{scalar}.2.weight"))
        assert weight.any(), f"{scalar}: still as it was born"


def carried_out(config, *, resume=False, at=None):
    """A run in a process of its own, ended before cycle `at`; its exit code."""
    return small_run.in_processes(1, small_run.run_or_die, config, resume, at)[0]


def test_guided_pairs_of_a_teacher_that_knows_no_guidance_are_refused(tmp_path, capsys):
    file = write(tmp_path, "classes", "dmd")
    tiny.ddpm().save_pretrained(tmp_path / "free")
    teacher = [f"teacher={{path: {tmp_path / 'free'}}}", "data={source: noise}"]
    assert main(["train", "--config", str(file), *teacher, "pairs.guidance=2"]) == 2
    assert "reads pairs under guidance 2" in capsys.readouterr().err
