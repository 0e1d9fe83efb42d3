"""Generators that are told where a step leads, or their guidance: what is exported of them is a stock pipeline."""

import re

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file
from torch import Tensor
from trajectory_runs import exported, saved, write

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
    script = Yardstick(lambda _: None, lambda _: {"score": next(values)}, "score", gap=float)
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
    plan = Student(config, pipeline, torch.device("cpu")).plan
    shape = {"process": config.process, "sharing": config.sharing, "lora": config.lora}
    return pipeline, build_roles(pipeline, config.stages[0], plan=plan, weights=None, seed=0, **shape)


def check_export(config: Config, pipeline: Pipeline, roles: Roles, told: list[dict[str, float]]) -> None:
    """The generator says, told these values at its two stops, what the exported pipeline says by itself."""
    stock = end_of(load(exported(config.out), device="cpu"), config)
    known = dict(zip(roles.plan.grids[-1].tolist(), told, strict=True))
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
    times, noise = roles.plan.grids[-1].tolist(), seeded_noise([0], pipeline.shape, torch.device("cpu"))
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
