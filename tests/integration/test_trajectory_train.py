"""Objectives without a fake score on stock pipelines, as `fastgen train` does it: from a teacher to a verified export.

Classes in pixels with whole networks, SDXL and a flow model with LoRAs on a shared one.
"""

import numpy as np
import pytest
import torch
from trajectory_runs import CASES, differ, exported, log, losses, saved, weights, write

from fastgen.cli import main
from fastgen.config import yaml_file as configfile
from fastgen.models.pipelines.loading import load

pytestmark = pytest.mark.usefixtures("verified_here")
USUAL = {  # the pipeline that each is tried on
    "classes": (
        *("boot", "cd", "ct", "finetune", "gdd", "guidance_distillation", "lcm", "kd", "meanflow", "mdt_dist"),
        *("alphaflow", "ayf", "improved_meanflow", "perflow", "progressive", "rcm", "reflow", "scm", "shortcut"),
        *("apt", "tbcm", "twinflow", "ctm", "imm"),
    ),
    "sdxl": ("advantage_flow", "ladd", "lightning", "pcm", "scflow", "scott", "std"),
    "sd3": ("add", "d_opsd", "freeflow", "pdd", "refl", "sana_sprint", "self_shortcut", "tdd", "tscd"),
}
QUICK = {"advantage_flow", "cd", "finetune", "freeflow", "kd", "pcm", "pdd", "sana_sprint", "scm", "self_shortcut"}
QUICK |= {"d_opsd", "tdd"}
"""One for each part that runs have: rewards, a target that follows, images on a distilled model, a fake score, pairs,
phases with a discriminator on SDXL, heads, a context, a GAN of derivatives, a state, its own target, solvers. lcm,
guidance_distillation and meanflow are trained in test_trajectory_told, progressive in test_trajectory_stages."""


def products():
    for kind, usual in USUAL.items():
        for name in [name for name in CASES if kind != "classes" or not CASES[name].prompts]:
            slow = name not in usual or name not in QUICK
            yield pytest.param(kind, name, id=f"{name}-{kind}", marks=[pytest.mark.slow] * slow)


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
    rewarded = {key.split("/")[1] for line in lines for key in line if key.startswith("rewards/")}
    assert rewarded - {"spread"} == ({"Light", "judge_Light", "distance"} if "rewards" in case.more else set())
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


def test_the_pipelines_share_the_objectives_out():
    assert sorted(name for names in USUAL.values() for name in names) == sorted(CASES)


def test_a_context_of_words_is_refused_of_a_teacher_of_classes(tmp_path, capsys):
    assert main(["train", "--config", str(write(tmp_path, "classes", "d_opsd"))]) == 2
    assert "asks its teacher in other words, but ConsistencyModelPipeline takes no prompts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mean_velocities_of_a_teacher_of_another_process_are_refused_with_the_remedy(tmp_path, capsys):
    file = write(tmp_path, "classes", "meanflow")
    assert main(["train", "--config", str(file), "process=native"]) == 2
    assert "'meanflow' holds on the flow process only, and the teacher has another: set process=flow" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
