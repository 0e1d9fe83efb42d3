"""Every trajectory objective on stock pipelines, as `fastgen train` does it: from a teacher to a verified export.

Classes in pixels with whole networks, SDXL and a flow model with LoRAs on a shared one.
"""

import json
import re
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
from torch import Tensor

from fastgen.cli import main
from fastgen.config import yaml_file as configfile
from fastgen.config.schema import Config
from fastgen.distillation.monitor import Monitor
from fastgen.distillation.student import Student
from fastgen.engine.quality import Yardstick
from fastgen.engine.roles import build_roles
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.roles import Roles
from fastgen.models.walk import sample
from fastgen.sampling.sampler import seeded_noise

pytestmark = pytest.mark.usefixtures("verified_here")


@dataclass(frozen=True)
class Case:
    """What an objective has to log, the student that it needs, and its settings."""

    losses: set[str]
    student: str = "{steps: [2]}"
    settings: str = ""
    process: str = "native"
    state: tuple[str, ...] = ()
    ema: float = 0.0


ODE = "{steps: [2], sampler: ode}"
CONSISTENCY, SHORTCUT = {"generator/consistency"}, {"generator/shortcut"}
RIVALS = {"generator/consistency", "generator/gan", "discriminator/gan"}
CASES = {
    "cd": Case(CONSISTENCY, ema=0.95),
    "ct": Case(CONSISTENCY, "{steps: [1]}"),
    "lcm": Case(CONSISTENCY, "{steps: [1, 2], guidance: 8.5}", ema=0.95),
    "scm": Case({"generator/tangent"}, state=("log_variance",)),
    "sana_sprint": Case(
        {"generator/tangent", "generator/gan", "discriminator/gan"},
        "{steps: [2], guidance: 4.5}",
        state=("log_variance",),
    ),
    "pcm": Case(RIVALS, ODE),
    "tscd": Case(CONSISTENCY, ODE, "segments: 4", ema=0.95),
    "tdd": Case(RIVALS, "{steps: [1, 2], sampler: ode}"),
    "meanflow": Case({"generator/mean_velocity"}, ODE, "diagonal: 0", process="flow"),
    "shortcut": Case(SHORTCUT, ODE, "bootstrapped: 0.5, levels: 2", process="flow", ema=0.999),
    "self_shortcut": Case(SHORTCUT, "{steps: [1, 2], sampler: ode}", ema=0.999),
    "progressive": Case({"generator/progressive"}, ODE),
    "guidance_distillation": Case({"generator/guided"}, "{steps: [2], sampler: ode, guidance: 3}"),
    "kd": Case({"generator/regression"}, "{steps: [1]}"),
}
USUAL = {  # the pipeline that each is tried on when there is no time for all
    "classes": ("cd", "ct", "guidance_distillation", "lcm", "kd", "meanflow", "progressive", "scm", "shortcut"),
    "sdxl": ("pcm",),
    "sd3": ("sana_sprint", "self_shortcut", "tdd", "tscd"),
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
    file = folder / "run.yaml"
    file.write_text(f"""\
out: {folder}/out
device: cpu
cache: null
teacher: {{path: {folder}/teacher{", num_classes: 10, null_label: 10" if kind == "classes" else ""}}}
student: {case.student[:-1]}{size}}}
process: {case.process}
sharing: {sharing}
lora: {{rank: 2, alpha: 3}}
data: {data}
pairs: {{count: 4, steps: 2}}
{stages or objective}
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
    return {key: value for key, value in line.items() if "/" in key and key.split("/")[1] not in ("grad", "lr")}


def saved(out: Path) -> list[dict[str, dict[str, Tensor]]]:
    """The tensors of each role in each checkpoint, the oldest first."""
    places = sorted((out / "checkpoints").iterdir())
    return [{file.stem: load_file(file) for file in place.glob("*.safetensors")} for place in places]


def products():
    for kind, usual in USUAL.items():
        for name in CASES:
            yield pytest.param(kind, name, id=f"{name}-{kind}", marks=[pytest.mark.slow] * (name not in usual))


@pytest.mark.parametrize(("kind", "name"), products())
def test_an_objective_makes_a_verified_student_of_a_stock_pipeline(kind, name, tmp_path, capsys):
    file, out, case = write(tmp_path, kind, name), tmp_path / "out", CASES[name]
    assert main(["train", "--config", str(file)]) == 0, capsys.readouterr().err
    written = 1 if kind == "classes" else 2  # a pipeline, and a LoRA where it is one
    assert capsys.readouterr().out.count("verified") == written * len(configfile.load(file).student.steps)
    teacher, student = (weights(load(folder, device="cpu")) for folder in (tmp_path / "teacher", exported(out)))
    assert differ(teacher, student)
    lines = log(out)
    assert len(lines) == 2
    for line in lines:
        assert losses(line).keys() == case.losses
        assert all(np.isfinite(value) for value in losses(line).values())
    first, second = saved(out)
    trained = {key.split("/")[0] for key in case.losses} | set(case.state)
    assert trained <= first.keys()
    for role in trained:
        assert differ(first[role], second[role]), role
    assert ("target" in first) == bool(case.ema)
    if case.ema:
        for key, value in first["target"].items():
            moved = value.lerp(first["generator"][key], 1 - case.ema)  # before the second update, as it was after one
            torch.testing.assert_close(second["target"][key], moved, rtol=1e-6, atol=1e-8, msg=key)
        assert differ(first["target"], second["target"])


def exported(out: Path, *, steps: int = 2) -> Path:
    """The student's folder, or that of a step count where each has its own."""
    folder = out / "student"
    return folder if (folder / "model_index.json").exists() else folder / f"{steps}step"


def test_the_pipelines_share_the_objectives_out():
    assert sorted(name for names in USUAL.values() for name in names) == sorted(CASES)


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("lcm", "classes", {"w": 8.5}),
        ("meanflow", "classes", {"s": True}),
        pytest.param("shortcut", "sdxl", {"s": True}, marks=pytest.mark.slow),
        ("guidance_distillation", "sd3", {"w": 3.0}),
    ],
)
def test_a_stock_pipeline_says_in_two_steps_what_the_generator_says_that_is_told(name, kind, told, tmp_path, capsys):
    file = write(tmp_path, kind, name, rate=1e-2)
    assert main(["train", "--config", str(file), "train.images=8"]) == 0, capsys.readouterr().err
    config = configfile.load(file)
    pipeline, roles = rebuilt(config)
    roles["generator"].load_state_dict(saved(config.out)[-1]["generator"])
    ends = [halfway(pipeline.pipe), 0.0] if "s" in told else [None, None]
    check_export(config, pipeline, roles, [{"s": s} if s is not None else {"w": told["w"] / 20} for s in ends])


def test_the_best_generator_that_is_told_is_exported_not_the_last(tmp_path, monkeypatch, capsys):
    values = iter([5, 4, 1, 3, 3])
    script = Yardstick(lambda _: {"score": next(values)}, "score", gap=float)
    monkeypatch.setattr("fastgen.distillation.distil._monitor", lambda *_, **__: Monitor(script, lambda _: None))
    file = write(tmp_path, "classes", "lcm", rate=1e-2)
    options = ["train.images=8", "evaluate.every=2"]
    assert main(["train", "--config", str(file), *options]) == 0, capsys.readouterr().err
    config = configfile.load(file)
    pipeline, roles = rebuilt(config)
    roles["generator"].load_state_dict(saved(config.out)[1]["generator"])  # after two updates, as the third value says
    check_export(config, pipeline, roles, 2 * [{"w": 8.5 / 20}])


def rebuilt(config: Config) -> tuple[Pipeline, Roles]:
    """The teacher, and the roles of the first stage as they begin."""
    pipeline = teacher_of(config)
    student = Student(config, pipeline, torch.device("cpu")).plan
    shape = {"process": config.process, "sharing": config.sharing, "lora": config.lora}
    return pipeline, build_roles(pipeline, config.stages[0], student=student, weights=None, seed=0, **shape)


def check_export(config: Config, pipeline: Pipeline, roles: Roles, told: list[dict[str, float]]) -> None:
    """The generator says, told these values at its two stops, what the exported pipeline says by itself."""
    stock = end_of(load(exported(config.out), device="cpu"), config)
    known = dict(zip(roles.student.grids[-1].tolist(), told, strict=True))
    theirs, alone = (drawn(roles, pipeline, config, values) for values in (known, {}))
    assert float((theirs - stock).abs().max() / stock.abs().max()) < 1e-4
    assert float((alone - stock).abs().max() / stock.abs().max()) > 1e-3, "what is told makes no difference"


def halfway(pipe: DiffusionPipeline) -> float:
    """Step 499 of 1000 as the flow process calls it: sigma / (alpha + sigma)."""
    alpha = pipe.scheduler.alphas_cumprod[499].double().sqrt()
    sigma = (1 - alpha**2).sqrt()
    return float(sigma / (alpha + sigma))


def teacher_of(config: Config) -> Pipeline:
    pipe, size = load(config.teacher.path, device="cpu"), {}
    if config.student.height:
        size = {"height": config.student.height, "width": config.student.width}
    pipeline = Pipeline(pipe, num_classes=config.teacher.num_classes, null_label=config.teacher.null_label, size=size)
    pipeline.encode(["a fox"] if config.student.height else [])
    return pipeline


def drawn(roles: Roles, pipeline: Pipeline, config: Config, told: dict[float, dict[str, float]]) -> Tensor:
    """The trained generator's sample of seed 0 in two steps."""
    times, noise = roles.student.grids[-1].tolist(), seeded_noise([0], pipeline.shape, torch.device("cpu"))
    cond = pipeline.condition(1, labels=torch.tensor([3]), prompts=["a fox"])
    return sample(roles.generator, noise, cond, times, sampler=config.student.sampler, scalars=told)


def end_of(pipe: DiffusionPipeline, config: Config) -> Tensor:
    """What the last scheduler step of a plain call leaves, of the same seed."""
    ends, step = [], pipe.scheduler.step

    def noting(*args: object, **kwargs: object) -> object:
        result = step(*args, **kwargs)
        ends.append(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    pipe.scheduler.step = noting
    asked = {"prompt": "a fox", "height": 16, "width": 16} if config.student.height else {"class_labels": 3}
    guidance = {"guidance_scale": 1.0} if hasattr(pipe, "transformer") else {}
    pipe(**asked, **guidance, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert len(ends) == 2
    return ends[-1].detach()


def test_a_target_with_embeddings_goes_on_as_if_nothing_had_happened(tmp_path):
    file = write(tmp_path, "classes", "lcm")
    whole, broken = (configfile.load(file, ["train.images=8", f"out={tmp_path / out}"]) for out in ("whole", "broken"))
    assert carried_out(whole) == 0
    assert carried_out(broken, at=(0, 2)) == -9
    assert carried_out(broken, resume=True) == 0
    assert (whole.out / "log.jsonl").read_bytes() == (broken.out / "log.jsonl").read_bytes()
    last, other = (saved(run.out)[-1] for run in (whole, broken))
    for role in ("generator", "target"):
        assert not differ(last[role], other[role])
        assert last[role]["embeddings.embed.w.2.weight"].any(), f"{role}: still as it was born"


def carried_out(config, *, resume=False, at=None):
    """A run in a process of its own, ended before cycle `at`; its exit code."""
    return small_run.in_processes(1, small_run.run_or_die, config, resume, at)[0]


ROUNDS = """\
stages:
  - {name: halves, objective: {name: progressive, divided: 2}, train: {images: 4, ema: 0.5}}
  - {name: last, objective: {name: progressive}, carry: {real_score: ema, generator: ema}, train: {images: 4, ema: 0.5}}
"""


@pytest.mark.parametrize("kind", ["classes", pytest.param("sd3", marks=pytest.mark.slow)])
def test_a_round_of_progressive_distillation_learns_from_the_round_before(kind, tmp_path, capsys):
    file, out = write(tmp_path, kind, "progressive", stages=ROUNDS), tmp_path / "out"
    nearly_still = ["stages.1.train.optim={lr: 1e-12}"]
    assert main(["train", "--config", str(file), *nearly_still]) == 0, capsys.readouterr().err
    _, left, begun, _ = saved(out)
    assert "real_score" not in left  # the teacher's own, so that nothing has to be kept of it
    assert differ(left["ema"], left["generator"])
    before = {key.removeprefix("net.").removeprefix("adapter."): value for key, value in left["ema"].items()}
    for role in ("real_score", "generator"):
        now = {key.removeprefix("net.").removeprefix("adapter."): value for key, value in begun[role].items()}
        assert now.keys() == before.keys()
        for key, value in before.items():
            torch.testing.assert_close(now[key], value, rtol=0, atol=1e-9, msg=f"{role} {key}")


@pytest.mark.parametrize("kind", ["classes", pytest.param("sd3", marks=pytest.mark.slow)])
def test_what_a_generator_has_learned_to_be_told_goes_on_into_the_next_stage(kind, tmp_path, capsys):
    told = "teacher_guidance: {low: 2, high: 5, told: true}"
    stages = f"""\
stages:
  - {{objective: {{name: guidance_distillation, {told}}}, train: {{images: 4}}}}
  - {{objective: {{name: progressive, {told}}}, train: {{images: 4, optim: {{lr: 1e-12}}}}}}
"""
    file, out = write(tmp_path, kind, "guidance_distillation", stages=stages), tmp_path / "out"
    assert main(["train", "--config", str(file)]) == 0, capsys.readouterr().err
    _, left, begun, _ = (roles["generator"] for roles in saved(out))
    assert any(".embed.w." in key for key in left)
    for key, value in left.items():
        torch.testing.assert_close(begun[key], value, rtol=0, atol=1e-9, msg=key)
    kept = load_file(out / "stages/guidance_distillation/generator.safetensors")
    assert not any("embed.w" in key for key in kept)  # a plain network's, as the export is


def test_in_bf16_the_target_is_kept_in_full_precision(tmp_path, capsys):
    file = write(tmp_path, "classes", "lcm")
    assert main(["train", "--config", str(file), "train.precision=bf16"]) == 0, capsys.readouterr().err
    first, second = saved(tmp_path / "out")
    assert {value.dtype for value in second["target"].values()} == {torch.float32}
    key = next(key for key, value in first["generator"].items() if not torch.equal(value, second["target"][key]))
    torch.testing.assert_close(
        second["target"][key], first["target"][key].lerp(first["generator"][key], 0.05), rtol=1e-6, atol=1e-8
    )


def test_mean_velocities_of_a_teacher_of_another_process_are_refused_with_the_remedy(tmp_path, capsys):
    file = write(tmp_path, "classes", "meanflow")
    assert main(["train", "--config", str(file), "process=native"]) == 2
    assert "'meanflow' holds on the flow process only, and the teacher has another: set process=flow" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["student.steps=[2,3]", "lora.rank=3"], r"lora.rank must be at least 4 \(it is 3\)"),
        (["lora.targets=[timestep_embedder.linear_2, to_q]"], "lora.targets must leave that layer out"),
    ],
)
def test_a_lora_that_cannot_hold_what_its_generator_is_told_is_refused_before_training(
    options, words, tmp_path, capsys
):
    file = write(tmp_path, "sd3", "lcm")
    assert main(["train", "--config", str(file), *options]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not (tmp_path / "out/checkpoints").exists()
