"""The shipped configs: each tells its paper from what was measured, and runs on a stand-in, end to end."""

import re

import pytest
import tiny
import torch
from config_runs import ANYBODYS, CONFIGS, run_config, save_images
from encoded import encoded, noise_image, save
from small_vision import write_vision

from fastgen.cli import main
from fastgen.config.yaml_file import load
from fastgen.objectives import OBJECTIVES
from fastgen.objectives.parts.solvers import Guidance

DOCS = CONFIGS.parent / "docs"
PAPERS, SHIPPED = ((DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("objectives", "configs"))
MATCHING = {
    "vsd": "sd15/vsd_1step_lora",
    "swiftbrush": "sd21/swiftbrush_1step_lora",
    "diff_instruct": "cifar10/diff_instruct_1step",
    "dmd": "cifar10/dmd_1step",
    "dmd2": "cifar10/dmd2_1step",
    "f_distill": "cifar10/f_distill_1step",
    "smd": "cifar10/smd_1step",
    "tdm": "sdxl/tdm_4step_lora",
    "phased_dmd": "qwen_image/phased_dmd_4step_lora",
    "decoupled_dmd": "sdxl/decoupled_dmd_4step_lora",
    "dp_dmd": "emoji/dp_dmd_4step_lora",
    "anyflow": "cifar10/anyflow_4step",
    "asd": "wan21/asd_4step_lora",
    "k_dmd": "emoji/k_dmd_4step_lora",
    "emd": "cifar10/emd_1step",
    "dmdr": "emoji/dmdr_4step_lora",
    "sid": "cifar10/sid_1step",
    "sida": "cifar10/sida_1step",
    "sfd": "cifar10/sfd_1step",
    "sid_lsg": "sd15/sid_lsg_1step_lora",
    "sid_few_step": "sdxl/sid_few_step_4step_lora",
    "sim": "cifar10/sim_1step",
    "uni_instruct": "cifar10/uni_instruct_1step",
}
TRAJECTORY = {
    "ladd": "emoji/ladd_4step_lora",
    "add": "emoji/add_4step_lora",
    "gdd": "cifar10/gdd_1step",
    "apt": "cifar10/apt_1step",
    "lightning": "sdxl/lightning_4step_lora",
    "cd": "cifar10/cd_1step",
    "ct": "cifar10/ct_2step",
    "tcm": "cifar10/tcm_1step",
    "lcm": "sd15/lcm_4step",
    "scott": "sd15/scott_2step",
    "scflow": "sd15/scflow_4step",
    "scm": "cifar10/scm_2step",
    "rcm": "cifar10/rcm_4step",
    "sana_sprint": "sana/sana_sprint_2step",
    "pcm": "sd15/pcm_4step_lora",
    "tscd": "sdxl/tscd_1step_lora",
    "tdd": "sdxl/tdd_4step_lora",
    "std": "sdxl/std_8step_lora",
    "meanflow": "cifar10/meanflow_1step",
    "improved_meanflow": "cifar10/improved_meanflow_1step",
    "alphaflow": "cifar10/alphaflow_1step",
    "ayf": "cifar10/ayf_4step",
    "mdt_dist": "cifar10/mdt_dist_1step",
    "ctm": "cifar10/ctm_1step",
    "imm": "cifar10/imm_2step",
    "shortcut": "cifar10/shortcut_4step",
    "self_shortcut": "flux/self_shortcut_4step_lora",
    "progressive": "cifar10/progressive_4step",
    "perflow": "sd15/perflow_4step",
    "pdd": "sdxl/pdd_4step_lora",
    "freeflow": "cifar10/freeflow_1step",
    "boot": "sd15/boot_1step",
    "tbcm": "sana/tbcm_1step",
    "twinflow": "cifar10/twinflow_1step",
    "kd": "cifar10/kd_1step",
    "d_opsd": "emoji/d_opsd_4step_lora",
    "reflow": "sd15/reflow_4step",
    "refl": "emoji/refl_4step_lora",
    "advantage_flow": "emoji/advantage_flow_4step_lora",
    "guidance_distillation": "sd15/guidance_distillation_20step",
}
MORE = {
    "lcm": "sdxl/lcm_4step_lora",
    "guidance_distillation": "sdxl/agd_20step_lora",
    "meanflow": "sana/meanflow_4step_lora",
    "phased_dmd": "wan/phased_dmd_4step_lora",
}
FOUND = [*MATCHING.items(), *TRAJECTORY.items(), *MORE.items()]
COMPARED = ("dmd2", "sid", "sim", "f_distill", "dmd", "decoupled_dmd", "vsd", "swiftbrush", "diff_instruct", "sida")
COMPARED += ("sid_lsg", "sid_few_step", "uni_instruct", "tdm", "phased_dmd")
COMPARED_TRAJECTORY = ("lcm", "pcm", "scm", "meanflow", "shortcut", "progressive", "cd", "ct", "tscd", "tdd")
COMPARED_TRAJECTORY += ("self_shortcut", "sana_sprint", "kd", "reflow", "perflow", "guidance_distillation", "twinflow")
COMPARED_TRAJECTORY += ("mdt_dist", "ctm", "improved_meanflow", "alphaflow", "ayf", "imm")
SLOWER = {"tdd": 1e-4}  # a rate at which its own target does not drive it apart
UNGUIDED = {"decoupled_dmd", "sid_few_step", "ct", "kd", "reflow"}  # by a guidance that is fixed at 1.5
pytestmark = pytest.mark.usefixtures("verified_here", "few_previews")


def test_every_objective_that_distils_has_a_config():
    assert {*MATCHING, *TRAJECTORY} == OBJECTIVES.keys() - {"pretrain", "degradation", "finetune"}


@pytest.mark.parametrize(("name", "config"), FOUND)
def test_an_objective_has_a_config_that_tells_its_paper_from_what_we_measured(name, config):
    file = CONFIGS / f"{config}.yaml"
    last = load(file).stages[-1]
    assert type(last.objective) is OBJECTIVES[name]
    header = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    paper = re.search(r"arXiv:\d{4}\.\d{5}", header.splitlines()[0])
    assert paper
    assert f"# python train.py --config configs/{config}.yaml" in header
    assert re.search("Hardware guess: |of one H[12]00", header)
    assert "Paper, not measured here: " in header or "docs/results/" in header
    (row,) = re.findall(rf"^\| `{name}` \| .*\]\(https.*$", PAPERS, re.M)
    assert f"[{paper[0]}](https://arxiv.org/abs/{paper[0].removeprefix('arXiv:')})" in row
    assert re.search(rf"^\| `{config}` \| .*`{name}` \|", SHIPPED, re.M)


def test_the_compared_runs_differ_in_objective_and_steps_alone():
    runs = [load(CONFIGS / "cifar10/compare" / f"{name}.yaml") for name in COMPARED]
    assert [type(run.stages[-1].objective) for run in runs] == [OBJECTIVES[name] for name in COMPARED]
    for run in runs:
        assert sum(stage.train.minutes for stage in run.stages) == pytest.approx(3.5)
        same = {"out", "student", "pairs", "stages"}
        assert run.model_dump(exclude=same) == runs[0].model_dump(exclude=same)
        differing = {"minutes"}
        trained, first = (r.stages[-1].train.model_dump(exclude=differing) for r in (run, runs[0]))
        assert trained == first
    scales = {one.stages[-1].name: one.stages[-1].objective.guidance for one in runs}
    assert all(scale.drawn(torch.Generator()).real == 1.5 for name, scale in scales.items() if name not in UNGUIDED)
    warmed, cold = runs[:-2], runs[-2:]
    assert all(run.student.steps == (1,) and run.stages[:1] == runs[0].stages[:1] for run in warmed)
    assert all(run.student.steps == (4,) and len(run.stages) == 1 for run in cold)


def test_the_compared_trajectory_runs_differ_in_objective_process_precision_and_steps_alone():
    """And in the rate of the one that is named above."""
    runs = [load(CONFIGS / "cifar10/compare" / f"{name}.yaml") for name in COMPARED_TRAJECTORY]
    assert [type(run.stages[-1].objective) for run in runs] == [OBJECTIVES[name] for name in COMPARED_TRAJECTORY]
    for run in runs:
        assert sum(stage.train.minutes for stage in run.stages) == pytest.approx(3.5)
        same = {"out", "student", "process", "stages", "pairs"}
        assert run.model_dump(exclude=same) == runs[0].model_dump(exclude=same)
        for stage in run.stages:
            trained, first = (s.train.model_dump(exclude={"minutes", "precision"}) for s in (stage, runs[0].stages[0]))
            first["optim"]["lr"] = SLOWER.get(stage.name, first["optim"]["lr"])
            assert trained == first
        if run.stages[0].name not in UNGUIDED:
            assert run.stages[0].objective.teacher_guidance == Guidance(1.5, 1.5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [config for _, config in FOUND if config.split("/")[0] in ANYBODYS])
def test_a_config_of_text_to_image_runs_on_a_stand_in(config, tmp_path, capsys, request):
    place, name = config.split("/")
    if place == "sana":
        request.getfixturevalue("without_binning")
    data = f"data={{source: folder, path: {save_images(tmp_path / 'images')}, size: {32 if place == 'sana' else 16}}}"
    file = load(CONFIGS / f"{config}.yaml")
    options = [data] * file.data.has_images + ["discriminator.layers=[blocks.0]"] * (place == "wan21")
    if file.stages[-1].objective.needs.pixels:
        options.append(f"discriminator.network={write_vision(tmp_path / 'vision')}")
    run_config(place, tmp_path, *options, "train.optim.eps=1e-8", name=name)
    assert "verified" in capsys.readouterr().out


@pytest.mark.slow
def test_the_config_of_images_of_any_shape_runs_on_a_stand_in(tmp_path, capsys):
    for number, shape in enumerate([(16, 16), (24, 8), (8, 24)] * 3):
        save(tmp_path / f"images/{number}.png", encoded(noise_image(number, *shape)))
        save(tmp_path / f"images/{number}.txt", f"prompt {number}")
    data = [f"data.path={tmp_path / 'images'}", "data.size=16", "data.buckets={step: 8, ratio: 3.0}"]
    data = ["data={source: folder, path: a, size: 16}", *data, "flip=true"]
    out = run_config("sdxl", tmp_path, *data, "train.optim.eps=1e-8", name="dmd2_gan_4step_lora")
    assert "verified" in capsys.readouterr().out
    assert (out / "student-lora/pytorch_lora_weights.safetensors").is_file()


CIFAR10 = [config for _, config in FOUND if "cifar10" in config]
CIFAR10 += sorted(f"cifar10/compare/{file.stem}" for file in (CONFIGS / "cifar10/compare").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("config", CIFAR10)
def test_a_config_of_cifar10_runs_on_a_stand_in(config, tmp_path, capsys):
    tiny.class_conditional(size=32).save_pretrained(tmp_path / "teacher")
    images = save_images(tmp_path / "images", classes=10)
    file = CONFIGS / f"{config}.yaml"
    shape = {"images": 4, "batch": max(2, load(file).stages[-1].objective.needs.group), "precision": "fp32"}
    stages = range(len(load(file).stages))
    staged = (CONFIGS / f"{config}.yaml").read_text().count("stages:")
    short = [f"stages.{i}.train.{key}={value}" for i in stages for key, value in shape.items()]
    options = short if staged else [f"train.{key}={value}" for key, value in shape.items()]
    options += [f"teacher.path={tmp_path / 'teacher'}", f"data={{source: folder, path: {images}, size: 32}}"]
    options += ["pairs.count=4", "pairs.steps=2", f"out={tmp_path / 'run'}", "device=cpu", "log.previews=1"]
    place = f"stages.{len(stages) - 1}.objective" if staged else "objective"
    options += [f"{place}.gan.start=0"] * any(name in config for name in ("sida", "uni_instruct", "ctm_1step"))
    if load(file).stages[-1].objective.needs.pixels:
        options.append(f"discriminator.network={write_vision(tmp_path / 'vision')}")
    assert main(["train", "--config", str(file), *options]) == 0, capsys.readouterr().err
    assert "verified" in capsys.readouterr().out
