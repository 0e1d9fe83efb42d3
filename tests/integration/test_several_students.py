"""One command trains several students, and their folder is verified, sampled and gone on with as one."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from diffusers import DiffusionPipeline
from PIL import Image

from fastgen.cli import main

pytestmark = pytest.mark.usefixtures("few_previews", "verified_here")
CONFIG = """\
out: {here}/out
device: cpu
cache: {here}/cache
teacher: {{path: {here}/teacher}}
students: 2
objective: {{name: dmd2, gan: 0, ratio: 1}}
train: {{images: 8, batch: 4, optim: {{lr: 1e-2}}}}
log: {{trackers: [], previews: 1, every: 1}}
"""
PROMPTS = ("fox", "red fox", "zebra", "blue zebra", "foxes", "zebras")


def written(folder: Path, data: str) -> list[str]:
    (folder / "run.yaml").write_text(CONFIG.format(here=folder) + data)
    return ["train", "--config", str(folder / "run.yaml")]


def pictures(folder: Path) -> np.ndarray:
    return np.stack([np.asarray(Image.open(file)).astype(int) for file in sorted(folder.glob("0*.png"))])


@pytest.mark.slow
def test_classes_end_to_end(tmp_path, capsys):
    tiny.class_conditional().save_pretrained(tmp_path / "teacher")
    train = written(tmp_path, "data: {source: noise, num_classes: 10}\n")
    assert main([*train, "--dry-run"]) == 0
    assert "2 students, trained one after the other" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(train) == 0
    student = tmp_path / "out/student"
    assert json.loads((student / "students.json").read_text())["classes"] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert main(["sample", str(student), "--labels", "9", "--device", "cpu", "--out", str(tmp_path / "drawn")]) == 0
    assert "| `1` | classes 5, 6, 7, 8, 9 |" in (student / "README.md").read_text()
    teacher = [*train, "students=null", f"teacher.path={student}", f"out={tmp_path / 'further'}"]
    for command in ([*teacher, "--dry-run"], teacher, ["plan", *teacher[2:]]):
        capsys.readouterr()
        assert main(command) == 2
        assert "holds 2 students, each for its part of the conditions" in (said := capsys.readouterr().err)
        assert said.count(f"give one of them, as {student / '0'}") == 1
    assert not DiffusionPipeline.from_pretrained(student / "0").unet.training
    capsys.readouterr()
    assert main(["verify", str(student)]) == 0
    assert [line.split(" at ")[0] for line in capsys.readouterr().out.splitlines()] == [f"{student}/0", f"{student}/1"]
    asked = ["--labels", "9,0,4,5", "--device", "cpu", "--out"]
    for name in ("", "0", "1"):
        assert main(["sample", str(student / name), *asked, str(tmp_path / f"of{name}")]) == 0
    both, low, high = (pictures(tmp_path / f"of{name}") for name in ("", "0", "1"))
    assert np.abs(both - np.stack([high[0], low[1], low[2], high[3]])).max() <= 1
    assert np.abs(low - high).max() > 1

    assert main(train) == 2
    assert "already holds a run" in capsys.readouterr().err
    before = (student / "1/unet/diffusion_pytorch_model.safetensors").read_bytes()
    for last in ("students.json", "README.md"):
        (student / last).unlink()
    for begun in (student / "1", tmp_path / "out/1"):
        shutil.rmtree(begun)
    assert main([*train, "--resume"]) == 0
    said = capsys.readouterr()
    assert "resuming from" in said.out + said.err
    assert (student / "1/unet/diffusion_pytorch_model.safetensors").read_bytes() == before
    assert (student / "students.json").is_file()
    for folder, readme in ((student, "# Several students"), (student / "1", "# ConsistencyModelPipeline")):
        assert main(["card", str(folder), "--samples", str(tmp_path / "drawn")]) == 0
        text = (folder / "README.md").read_text()
        assert readme in text
        assert "class 9" in text
        assert "name: dmd2" in text, "the settings of its training"


@pytest.mark.slow  # as the one above, of another kind of pipeline
def test_prompts_end_to_end(tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path / "teacher")
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"{prompt}\n" for prompt in PROMPTS))
    data = f"data: {{source: prompts, path: {prompts}}}\nstudent: {{steps: [1], height: 16, width: 16}}\n"
    assert main(written(tmp_path, data)) == 0
    student = tmp_path / "out/student"
    assert json.loads((student / "students.json").read_text())["classes"] is None
    assert main(["verify", str(student)]) == 0
    asked = ["--prompts", str(prompts), "--prompt", "a zebra nobody saw", "--device", "cpu", "--out"]
    for name in ("", "0", "1"):
        assert main(["sample", str(student / name), *asked, str(tmp_path / f"of{name}")]) == 0
    both, *each = (pictures(tmp_path / f"of{name}") for name in ("", "0", "1"))
    near = np.stack([np.abs(both - one).max(axis=(1, 2, 3)) <= 1 for one in each])
    assert near.any(axis=0).all()
    assert near.any(axis=1).all()
    (config,) = [json.loads(file.read_text()) for file in (tmp_path / "of").glob("samples.json")]
    assert config["pipeline_class"] == "StableDiffusionPipeline"
