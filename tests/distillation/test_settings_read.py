"""What nothing of a run reads is refused by name; what one of its stages reads may stand where all inherit it."""

import re
from pathlib import Path

import pytest
from families import FAMILIES

from fastgen.config.yaml_file import load
from fastgen.distillation.checks import check_needs, check_stages
from fastgen.errors import UserError
from fastgen.models.pipelines.pipeline import Pipeline

RUN = """\
out: out
teacher: {path: nowhere}
data: {source: digits}
train: {images: 8, batch: 4}
objective: {name: dmd2, gan: 0}
"""
KD = "objective={name: kd}"
UNREAD = [
    (["lora.rank=8"], "lora.rank is 8, but sharing is full where it is not given", ["sharing=lora"]),
    (["lora.norms=true"], "lora.norms is True, but sharing is full where it is not", ["sharing=full"]),
    (["lora.keys=[kohya]", "sharing=scores"], "the student is a whole network", ["sharing=lora"]),
    (["flip=true", "data={source: noise}"], "flip is True, but the data source has no", ["data={source: digits}"]),
    (["teacher.path=.", "teacher.revision=a"], "revision is a, but teacher.path . is a folder", ["teacher.path=a/b"]),
    (
        ["teacher.path=.", "teacher.config=a"],
        "config is a, but teacher.path . is a folder",
        ["teacher.path=a.safetensors"],
    ),
    (["init=a", "carry.generator=teacher"], "init is a, but the first stage carries", ["carry.generator=generator"]),
    (["init=a", "carry.generator=teacher"], "init is a, but the first stage carries", ["carry.fake_score=generator"]),
    (
        ["student.guidance=3"],
        "guidance is 3.0, but no stage trains a generator that is told",
        ["objective={name: lcm}"],
    ),
    (["train.reuse=true", KD], "train.reuse is True, but no stage has", ["objective={name: dmd}"]),
    (["train.ema_device=cpu", "train.ema=null"], "ema_device is cpu, but no stage keeps", ["train.ema=0.9"]),
    (["train.optim.momentum=0.5"], "optim.momentum is 0.5, but it is Muon's", ["train.roles.generator.name=muon"]),
    (
        ["train.roles.generator.momentum=0.5"],
        "train.roles.generator.momentum is 0.5, but it is Muon's",
        ["train.roles.generator.name=muon"],
    ),
    (
        ["evaluate={protocol: clip, teacher_steps: 4}"],
        "evaluate.teacher_steps is 4, but under evaluate.protocol=clip",
        ["evaluate.protocol=digits"],
    ),
]


@pytest.mark.parametrize(("given", "words", "remedy"), UNREAD)
def test_what_nothing_reads_is_refused_and_what_something_reads_is_not(
    given: list[str], words: str, remedy: list[str], tmp_path: Path
):
    (tmp_path / "run.yaml").write_text(RUN)
    with pytest.raises(UserError, match=f"{re.escape(words)}.*so that it would be ignored: .*, or leave it out"):
        check_stages(load(tmp_path / "run.yaml", given))
    check_stages(load(tmp_path / "run.yaml", [*given, *remedy]))


def test_what_one_stage_reads_may_stand_for_all(tmp_path: Path):
    stages = "{name: a, objective: {name: kd}, train: {ema: null}}, {name: b, objective: {name: dmd, gan: 0}}"
    (tmp_path / "run.yaml").write_text(RUN.replace("objective: {name: dmd2, gan: 0}", f"stages: [{stages}]"))
    config = load(tmp_path / "run.yaml", ["train.reuse=true", "train.ema_device=cpu"])
    assert all(stage.train.reuse for stage in config.stages)
    check_stages(config)


@pytest.mark.parametrize(
    ("family", "option", "words"),
    [
        ("dit", "teacher.negative_prompt=ugly", "teacher.negative_prompt is ugly, but DiTPipeline takes classes"),
        ("ddpm", "caption_dropout=0.1", "caption_dropout is 0.1, but DDPMPipeline takes neither prompts nor classes"),
        ("stable_diffusion", "teacher.null_label=3", "null_label is 3, but StableDiffusionPipeline takes prompts"),
        ("stable_diffusion", "teacher.num_classes=3", "num_classes is 3, but StableDiffusionPipeline takes prompts"),
        ("stable_diffusion", "teacher.negative_prompt=ugly", None),
        ("stable_diffusion", "caption_dropout=0.1", None),
        ("dit", "teacher.null_label=3", None),
    ],
)
def test_what_the_teacher_is_never_asked_is_refused(family: str, option: str, words: str | None, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a fox\n")
    data = f"{{source: prompts, path: {tmp_path}/prompts.txt}}" if family == "stable_diffusion" else "{source: noise}"
    (tmp_path / "run.yaml").write_text(RUN)
    config, pipeline = load(tmp_path / "run.yaml", [f"data={data}", option]), Pipeline(FAMILIES[family].build())
    if words is None:
        check_needs(config, pipeline)
        return
    with pytest.raises(UserError, match=words):
        check_needs(config, pipeline)
