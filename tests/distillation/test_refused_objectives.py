"""What an objective can never be trained with is refused before the teacher is looked for."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from fastgen.cli import main
from fastgen.objectives import OBJECTIVES

NEW = "teacher={new: {pipeline: DDPMPipeline, parts: {}}}"
NOISE = "data={source: noise, num_classes: 10}"
ODE2 = "student={steps: [2, 4], sampler: ode}"
TOLD_FIRST = "stages=[{objective: {name: guidance_distillation}}, {objective: {name: progressive}}]"
WITH_FAKE_SCORE = [name for name, kind in OBJECTIVES.items() if "ratio" in {field.name for field in fields(kind)}]
BY_DISTANCE = ("cd", "ct", "tcm", "lcm", "scott", "scflow", "ctm", "std", "pcm", "tscd", "tdd")

MATCHING = [
    (["objective={name: tdm}"], "student.sampler is renoise: set student.sampler=ode"),
    (
        ["objective={name: phased_dmd}", "student={steps: [1], sampler: ode}"],
        "at least 2 steps, but .* declares 1: ",
    ),
    (["objective={name: phased_dmd, phases: 0}"], "phases is 0: need at least one"),
    (["objective={name: f_distill, gan: 0}"], "gan.weight 0: .* set gan.kind=logistic and a weight above 0"),
    (["objective={name: f_distill, gan: {kind: hinge}}"], "gan.kind is hinge .* set gan.kind=logistic"),
    (
        ["objective={name: uni_instruct, gan: {kind: relativistic}}"],
        "gan.kind is relativistic .* set gan.kind=logistic",
    ),
    (["objective={name: sfd}"], r"'sfd' forgets, but its objective.instead is \{\}, .* or choose objective sid"),
    (
        ["objective={name: dmd, distance: lpips, huber: 1}"],
        "huber is 1.0, but distance is lpips",
    ),
    (
        ["objective={name: sim, distance: square, huber: 1}"],
        "huber is 1.0, but distance is square",
    ),
    (
        ["objective.gan={spread: 0.5}"],
        "gan.spread is 0.5, but gan.approximate_r1 and approximate_r2 are 0, .* set one of them",
    ),
    (["objective={name: dmdr, group: 4}"], "group is 4, but form is refl, .* set form=grpo, or leave it out"),
    (
        ["objective={name: decoupled_dmd, weight: none, floor: 1}"],
        "floor is 1.0, but weight is none",
    ),
    (["objective={name: phased_dmd, weight: kl, floor: 1}"], "floor is 1.0, but weight is kl, .* set weight=l1"),
    (["objective={name: dmd2, gan: {weight: 0, kind: hinge}}"], "gan.kind is hinge, but gan.weight is 0, .*gan=0"),
    (["objective={name: sida}"], "'sida' needs real images .* use data.source folder, parquet or digits"),
    (["objective={name: uni_instruct}"], "'uni_instruct' needs real images .* use data.source folder"),
    (["objective={name: vsd, rollout: noised_data}"], "'vsd' needs real images"),
    (
        ["objective={name: dmd}", NEW],
        "'dmd' learns from the teacher, but teacher.new .*: train it in a run of its own",
    ),
    (
        ["objective={name: dmd}", "student.steps=[4]"],
        "'dmd' trains one step only, .* declares 4: set student.steps",
    ),
    (["objective={name: sid}", "student.steps=[4]"], "'sid' trains one step only, .*rollout=backward_simulation"),
    (["objective.guidance={law: anti, scale: 2}"], "need scale < 0, got 2.0"),
    (["objective.guidance={law: nope}"], "there is no law 'nope'; known: 'fixed', 'shared', 'long_short', "),
    (["objective.guidance={law: shared, low: 2}"], "guidance.shared.high: this setting is required"),
    (["objective.guidance={scale: 2}"], "this needs a `law`, e.g."),
    *(
        ([f"objective={{name: {name}, ratio: 0}}"], "ratio is 0: .* needs at least one update")
        for name in WITH_FAKE_SCORE
    ),
]
ADVERSARIAL = [
    (["objective={name: add}"], "no vision model is named: set discriminator.network"),
    (["objective={name: dmd2, gan: {pixels: true}}"], "no vision model is named: set discriminator.network"),
    (
        ["objective={name: ladd}", "discriminator={network: a}"],
        "discriminator.network is a, but ladd judges noisy samples",
    ),
    (
        ["objective={name: add}", "discriminator={network: a, layers: [b]}"],
        "discriminator.layers .*, but add judges decoded samples, .* set objective.gan.pixels=false",
    ),
    (["objective={name: gdd, gan: {pixels: false}}", "discriminator={network: a}"], "gan.pixels is false"),
    (["objective={name: add}", "discriminator={network: a}", NOISE], "'add' needs real images"),
    (["objective={name: asd}", "student.steps=[1]"], "holds few steps against more, .* declares 1 at most"),
    (["objective={name: apt}", "train.sharding=full"], "backbone of its own, which slices .* or gan.pixels=true"),
    (
        ["objective={name: dmd2, gan: {feature_r1: 1e-3}}", "train.sharding=full"],
        "gan.feature_r1, a second derivative: set gan.approximate_r1",
    ),
    (
        ["objective={name: ladd, real: images}", "train.sharding=full", "train.optim.frozen=[conv]"],
        "frozen parameters, which slices .* set the roles' frozen",
    ),
    *(
        (
            [f"objective={{name: {objective}}}", f"discriminator={{{given}}}", "student.steps=[1]"],
            f"discriminator.{told}, but .* trains no discriminator, .* set discriminator={{}}, or leave it out",
        )
        for objective, given, told in (
            ("dmd2, gan: 0", "backbone: own", "backbone is own"),
            ("dmd2, gan: {weight: 0}", "layers: [a, b]", r"layers is \('a', 'b'\)"),
            ("kd", "network: a, blocks: [3]", "network is a"),
            ("cd", "heads: mean", "heads is mean"),
        )
    ),
    (["objective={name: ladd}", NEW], "'ladd' learns from the teacher, but teacher.new"),
]
TRAJECTORY = [
    (["objective={name: cd}", NOISE], "'cd' needs real images .* use data.source folder, parquet or digits"),
    (["objective={name: lcm}"], "'lcm' .* told its guidance, .* such as student.guidance=8"),
    (["objective={name: sana_sprint}"], "'sana_sprint' .* told its guidance, .* such as student.guidance=8"),
    *(
        (
            [f"objective={{name: {name}, distance: l1, huber: 1}}"],
            "huber is 1.0, but distance is l1, .*=pseudo_huber",
        )
        for name in BY_DISTANCE
    ),
    *(([f"objective={{name: {name}, distance: huber, huber: 0}}"], "need huber > 0") for name in BY_DISTANCE),
    (["objective={name: ct, distance: pseudo_huber, huber: -1}"], "huber is -1 .* at least 0"),
    (["objective={name: kd, huber: -1}"], "huber is -1: .* need at least 0"),
    (["objective={name: tdm, huber: -1}"], "huber is -1: .* need at least 0"),
    (["objective={name: lcm, ema: 1}"], "ema is 1.0: need 0 .* <= ema < 1"),
    (["objective={name: lcm, teacher_guidance: {low: 6, high: 26}}"], r"from \[6, 26\]: need 0 <= low .* <= 20"),
    (["objective={name: shortcut}", ODE2], "told where a step leads, .* declares 2, 4: declare one"),
    (["objective={name: meanflow}", ODE2], "told where a step leads, .* declares 2, 4: declare one"),
    *(
        ([f"objective={{name: {name}}}"], f"'{name}' trains deterministic steps, .* set student.sampler=ode")
        for name in (
            "pcm",
            "tscd",
            "tdd",
            "scflow",
            "meanflow",
            "shortcut",
            "self_shortcut",
            "progressive",
            "pdd",
            "boot",
            "ayf",
        )
    ),
    (["objective={name: perflow, substeps: 1}"], "substeps is 1: need at least 2, a single step is a line"),
    (["objective={name: reflow}"], "'reflow' trains deterministic steps, .* set student.sampler=ode"),
    (["objective={name: k_dmd}"], "'k_dmd' goes on from a student of few steps, .* set carry={coach: generator}"),
    (["objective={name: tcm}"], "'tcm' goes on from a student of few steps, .* set carry={real_score: generator}"),
    (["objective={name: pcm, gan: {kind: relativistic}}"], "gan.kind is relativistic, .*hinge or logistic losses"),
    (["objective={name: pcm, gan: {paired: true}}"], "gan.paired is True, but the two jumps share their times"),
    (["objective={name: tdd, gan: {weight: 0.1, feature_r1: 1}}"], "gan.feature_r1 is 1.0, .* has no such term"),
    (["objective={name: tscd, segments: 0}"], "segments is 0: need at least one"),
    (["objective={name: tdd, jitter: 2}"], r"jitter is 2.0 and dropout 0.2: both lie in \[0, 1\]"),
    (["objective={name: tdd, ema: 1}"], "ema is 1.0: need 0"),
    (["objective={name: sana_sprint, gan: 0}"], "gan.weight is 0: .* choose objective scm"),
    (["objective={name: scm, velocity: data, teacher_guidance: 2}"], "velocity is data, .* set teacher_guidance=1"),
    (["objective={name: progressive, substeps: 1}"], "substeps 1: need at least 1 and 2"),
    (["objective={name: self_shortcut, taught: 0}"], "taught is 0.0?: need a share"),
    (
        ["objective={name: guidance_distillation, teacher_guidance: {low: 1, high: 5}}"],
        "the student is not told: set teacher_guidance.told=true",
    ),
    (["objective={name: pdd, heads: 0}"], "heads is 0: need at least one"),
    (
        ["objective={name: pdd, teacher_guidance: {low: 2, high: 5, told: true}}"],
        "teacher_guidance.told is true, .* set it to false",
    ),
    (
        ["stages=[{objective: {name: pdd}}, {objective: {name: progressive}}]", "student.sampler=ode"],
        "told an interval of time, and is not told it itself",
    ),
    (["objective={name: kd}", "student.steps=[4]"], "'kd' trains one step only, .* declares 4"),
    (
        ["objective={name: lcm}", "student={steps: [4], guidance: 8}", "sharing=lora", "lora.rank=3"],
        "lora.rank is 3, .* at least 4",
    ),
    ([TOLD_FIRST, "student.guidance=3", "student.sampler=ode"], "told its guidance, and is not told it itself"),
    (
        ["objective={name: advantage_flow, group: 3}", "rewards={name: clip, path: x}"],
        "compares 3 samples with each other, and a micro-batch has 4: .* multiples of 3",
    ),
    (["student.guidance=40"], "student.guidance: .* less than or equal to 20"),
]


def refused(folder: Path, config: str, options: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By training and by a dry run alike, in one paragraph, with nothing written."""
    (folder / "run.yaml").write_text(f"""\
out: {folder}/out
device: cpu
teacher: {{path: {folder}/nowhere}}
train: {{images: 8, batch: 4}}
{config}
""")
    for dry in ([], ["--dry-run"]):
        assert main(["train", "--config", str(folder / "run.yaml"), *options, *dry]) == 2
        told = capsys.readouterr().err.partition("fastgen: error: ")[2]
        assert re.search(words, told), told
        assert told.count("\n") <= 2
        assert "nowhere" not in told
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("options", "words"), MATCHING)
def test_of_distribution_matching(options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    config = "data: {source: noise, num_classes: 10}\nobjective: {name: dmd2, gan: 0}"
    refused(tmp_path, config, options, words, capsys)


@pytest.mark.parametrize(("options", "words"), TRAJECTORY + ADVERSARIAL)
def test_of_trajectories_and_adversaries(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    objective = "" if options[0].startswith("stages") else "objective: {name: ct}"
    refused(tmp_path, f"data: {{source: digits}}\n{objective}", options, words, capsys)
