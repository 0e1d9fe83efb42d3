"""Students with another last layer at each step: trained, exported and sampled at every step count of one training."""

import re

import pytest
import torch
from trajectory_runs import saved, write

from fastgen.cli import main
from fastgen.config import yaml_file as configfile
from fastgen.distillation.student import Student
from fastgen.distillation.teacher import teacher_of
from fastgen.engine.roles import build_roles
from fastgen.models.pipelines.heads import StepHeads
from fastgen.models.walk import sample, scalars_at
from fastgen.sampling.order import sample as drawn_by
from fastgen.sampling.sampler import seeded_noise

pytestmark = pytest.mark.usefixtures("verified_here")
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("stable_diffusion", ["sharing=full", "student.steps=[2,1]", "objective.target=midpoint"]),
        pytest.param("sd3", ["student.steps=[1,4,2]", "process=native"], marks=pytest.mark.slow),  # the same in a LoRA
        pytest.param("sdxl", ["student.steps=[4,1]", "process=flow"], marks=pytest.mark.slow),
    ],
)
def test_one_training_serves_every_step_count(kind, options, tmp_path, capsys, monkeypatch):
    file = write(tmp_path, kind, "pdd", rate=1e-2)
    assert main(["train", "--config", str(file), *options]) == 0, capsys.readouterr().err
    config = configfile.load(file, options)
    out = config.out
    said = capsys.readouterr().out
    assert len(re.findall(r"verified .*student\S* at", said)) == len(config.student.steps)
    assert not (out / "student-lora").exists(), "a LoRA has one last layer"
    found = [StepHeads.read(file.parent) for file in out.glob(f"student/**/{StepHeads.FILE}")]
    assert sorted(n for heads in found for n in heads.weights) == sorted({*config.student.steps} - {1})

    pipeline = teacher_of(config, CPU)
    plan = Student(config, pipeline, CPU).plan
    shape = {"process": config.process, "sharing": config.sharing, "lora": config.lora}
    roles = build_roles(pipeline, config.stages[0], plan=plan, weights=None, seed=0, **shape)
    roles["generator"].load_state_dict(saved(out)[-1]["generator"])
    assert roles["generator"].embeddings.offsets.any()
    pipeline.encode(["a fox"])
    for grid in roles.plan.grids:
        told = scalars_at(grid.tolist(), ("r", "s"), sampler="ode", guidance=None)
        noise, cond = seeded_noise([5], pipeline.shape, CPU), pipeline.condition(1, prompts=["a fox"])
        ours = sample(roles.generator, noise, cond, grid.tolist(), sampler="ode", scalars=told)
        theirs = drawn_by(out / "student", prompts=["a fox"], seed=5, steps=len(grid), device="cpu")
        pictures = pipeline.codec.decode(ours) / 2 + 0.5
        torch.testing.assert_close(theirs, pictures.clamp(0, 1), rtol=1e-3, atol=1e-3)
    assert main(["verify", str(out / "student")]) == 0, capsys.readouterr().err


def test_what_cannot_have_heads_of_its_steps_is_refused_before_training(tmp_path, capsys):
    file = write(tmp_path, "classes", "pdd")
    assert main(["train", "--config", str(file), "student.steps=[1,2]"]) == 2
    assert "takes no callback_on_step_end" in capsys.readouterr().err
    assert not (tmp_path / "out/checkpoints").exists()


def test_the_card_shows_how_each_step_gets_its_head(tmp_path, capsys, monkeypatch):
    file = write(tmp_path, "stable_diffusion", "pdd", rate=1e-2)
    assert main(["train", "--config", str(file), "student.steps=[1,2]"]) == 0, capsys.readouterr().err
    folder = tmp_path / "out/student"
    text = (folder / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.S)[1].replace("path/to/this/folder", str(folder))
    code = code.replace(
        "num_inference_steps=2", "num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type='pt'"
    )
    known = {"torch": torch}
    exec(code, known)
    ours = drawn_by(folder, prompts=["a photo of a cat"], seed=0, steps=2, device="cpu")
    torch.testing.assert_close(known["image"].float().cpu(), ours[0], rtol=1e-3, atol=1e-3)
