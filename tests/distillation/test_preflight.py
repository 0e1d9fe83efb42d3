"""What a dry run says of this machine: everything that a run would be refused for, and nothing more."""

import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
from encoded import save
from families import FAMILIES
from small_clip import write_clip
from small_vision import write_vision

from fastgen.cli import main
from fastgen.config.yaml_file import load
from fastgen.distillation.preflight import refusals

RUN = """
out: {here}/out
device: cpu
cache: null
teacher: {{path: {here}/teacher}}
student: {{steps: [2], height: 16, width: 16}}
data: {{source: prompts, path: {here}/prompts.txt}}
objective: {{name: dmd2, gan: 0, ratio: 1}}
train: {{images: 4, batch: 2}}
log: {{trackers: []}}
"""


def unreachable(*_, **__):
    raise OSError("no route to the hub")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "teacher"
    tiny.stable_diffusion().save_pretrained(folder)
    return folder


@pytest.fixture
def dry(tmp_path, teacher, capsys, monkeypatch):
    """The exit code of a dry run, and its complaints; the plan is printed in any case."""
    for module, name in (("costs", "costs"), ("foreseen", "foreseen")):  # seconds, and refuse nothing here
        monkeypatch.setattr(f"fastgen.distillation.{module}.{name}", lambda *_, **__: ())
    (tmp_path / "teacher").symlink_to(teacher)
    save(tmp_path / "prompts.txt", "fox\nowl\n")
    save(tmp_path / "run.yaml", RUN.format(here=tmp_path))
    before = sorted(tmp_path.rglob("*"))

    def run(*overrides):
        code = main(["train", "--config", str(tmp_path / "run.yaml"), "--dry-run", *overrides])
        told = capsys.readouterr()
        assert "updates: generator" in told.out
        assert sorted(tmp_path.rglob("*")) == before
        return code, told.err.partition("would be refused here:")[2]

    return run


def test_a_run_that_could_start_has_no_complaint(dry):
    assert dry() == (0, "")
    assert dry("student={steps: [2]}") == (0, "")


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("data.path=nowhere.txt", "nowhere.txt cannot be read"),
        ("only={classes: [3]}", "classes [3] are to be trained on, but the data has no classes"),
        ("device=cuda", "torch sees no CUDA device"),
        ("attention=flash", "attention: flash needs a CUDA GPU"),
        ("student.height=33", "student.height and student.width are no size of this teacher"),
        ("teacher.loras=[{path: nowhere.safetensors}]", "there is no LoRA 'nowhere.safetensors'"),
        ("teacher.path=no/such/teacher", "there is no pipeline folder 'no/such/teacher'"),
        ("teacher.path=./techer", "there is no pipeline folder './techer', did you mean teacher?: give the folder"),
        ("teacher.path=run.yaml", "run.yaml is not a .safetensors file: checkpoints of other kinds can run code"),
        ("teacher.path=~/teacher", "'~/teacher', a ~ is not your home folder here: give the folder"),
        ("teacher.path=own--er/name", "teacher.path is own--er/name, which is neither here nor in the hub's cache"),
        ("teacher.path=owner/name", "teacher.path is owner/name, which is neither here nor in the hub's cache"),
        ("teacher.loras=[{path: owner/lora}]", "teacher.loras is owner/lora, which is neither here nor in the hub's"),
        ("evaluate={protocol: domain, extractor: ., reference: nowhere}", "evaluate.reference is nowhere"),
        ("evaluate={protocol: domain, extractor: nowhere}", "there is no model folder 'nowhere'"),
        ("evaluate={protocol: dinov2}", "there is no model folder 'facebook/dinov2-large'"),
        ("evaluate={protocol: clean, extractor: nowhere.pt}", "nowhere.pt"),
        ("evaluate={protocol: digits, metric: beauty}", "evaluate.metric is beauty, which this protocol does not have"),
        ("out=~/run", "out is ~/run, and a ~ is not your home folder here"),
        ("cache=~/cache", "cache is ~/cache, and a ~ is not"),
        ("export=~/student", "the folder of the export is ~, and a ~ is not"),
        ("out=run.yaml", "which is a file"),
        ("out=run.yaml/deeper", "out is run.yaml/deeper, but "),
        ("cache=run.yaml", "cache is run.yaml, which is a file"),
    ],
)
def test_what_is_missing_is_a_complaint(dry, tmp_path, monkeypatch, override, complaint):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for asked in ("get_hf_file_metadata", "model_info"):
        monkeypatch.setattr(f"fastgen.distillation.preflight.{asked}", unreachable)
    code, told = dry(override)
    assert code == 2
    assert complaint in told
    assert len(told.strip().splitlines()) == 1


def test_damaged_weights_of_the_teacher_are_a_complaint(dry, tmp_path_factory, teacher):
    damaged = shutil.copytree(teacher, tmp_path_factory.mktemp("damaged") / "teacher")
    os.truncate(damaged / "unet/diffusion_pytorch_model.safetensors", 1000)
    code, told = dry(f"teacher.path={damaged}")
    assert code == 2
    assert "unet/diffusion_pytorch_model.safetensors is damaged" in told


@pytest.mark.parametrize("setting", ["out", "export", "cache"])
def test_a_folder_that_cannot_be_written_in_is_a_complaint(dry, tmp_path, monkeypatch, setting):
    closed = tmp_path / "closed"
    access = os.access
    monkeypatch.setattr(os, "access", lambda place, mode: place != closed and access(place, mode))
    monkeypatch.setattr("fastgen.disk.standing", lambda path: closed if "closed" in path.parts else tmp_path)
    monkeypatch.setattr(Path, "is_dir", lambda path, really=Path.is_dir: path == closed or really(path))
    code, told = dry(f"{setting}={closed / 'deeper/x'}")
    assert code == 2
    assert f"nothing can be written in {closed}" in told


def test_a_run_that_does_not_fit_on_its_disk_is_a_complaint(dry, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=100_000))
    code, told = dry()
    assert code == 2
    assert re.search(
        r"the run writes at least [\d,]{7,} bytes to .*/out and .*/out/student, where 100,000 are free", told
    )


def test_a_hub_that_does_not_answer_is_given_up(dry, monkeypatch):
    def silent(url, *, timeout):
        assert timeout <= 10
        raise OSError("timed out")

    monkeypatch.setattr("fastgen.distillation.preflight.get_hf_file_metadata", silent)
    code, told = dry("teacher.path=owner/name")
    assert (code, "could not be asked (timed out)" in told) == (2, True)


def test_what_a_later_stage_is_rewarded_by_is_asked_for_first(dry, tmp_path):
    stages = (
        "stages: [{objective: {name: dmd2, gan: 0}}, {objective: {name: refl}, rewards: {name: clip, path: nowhere}}]"
    )
    save(tmp_path / "run.yaml", RUN.format(here=tmp_path).replace("objective: {name: dmd2, gan: 0, ratio: 1}", stages))
    code, told = dry()
    assert (code, "the reward clip cannot load nowhere (" in told, len(told.strip().splitlines())) == (2, True, 1)
    seen = f"stages.1.rewards.path={write_clip(tmp_path.parent / 'clip')}"
    assert dry(seen) == (0, "")
    assert "the reward clip cannot load judge (" in dry(seen, "stages.1.judges={name: clip, path: judge}")[1]


def test_what_every_discriminator_sees_by_is_asked_for_first(dry, tmp_path):
    stages = ", ".join(
        f"{{name: {name}, objective: {{name: gdd}}, discriminator: {{network: {tmp_path.parent}/vision, {blocks}}}}}"
        for name, blocks in (("a", "blocks: [9]"), ("b", "blocks: [2]"))
    )
    write_vision(tmp_path.parent / "vision")
    objective = "objective: {name: dmd2, gan: 0, ratio: 1}"
    save(tmp_path / "run.yaml", RUN.format(here=tmp_path).replace(objective, f"stages: [{stages}]"))
    assert (
        "discriminator.blocks is [9], but the network has blocks 1 to 4"
        in dry("data={source: digits}", "student.steps=[1]")[1]
    )


def test_a_start_looks_at_what_a_dry_run_looks_at(dry, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fastgen.distillation.distil.teacher_of", lambda *_: pytest.fail("loaded"))
    asked = ["data.path=nowhere.txt", "student.height=33", "teacher.loras=[{path: nowhere.safetensors}]"]
    assert main(["train", "--config", str(tmp_path / "run.yaml"), *asked]) == 2
    told = capsys.readouterr().err
    assert "the run cannot start here:" in told
    assert len(told.strip().splitlines()) == 4


def test_all_complaints_come_at_once(dry, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, told = dry("device=cuda", "data.path=nowhere.txt", "student.width=12")
    assert code == 2
    assert len(told.strip().splitlines()) == 3


REFUSE_33 = ("sdxl", "sd3", "pixart_alpha", "sana", "wan", "ltx", "cogvideox", "lumina2")
ROUND = ("flux", "qwen_image")  # these warn and draw another size


@pytest.mark.parametrize("name", [*REFUSE_33, *ROUND])
def test_families_say_themselves_which_sizes_they_take(tmp_path, name):
    family = FAMILIES[name]
    family.build().save_pretrained(tmp_path / "teacher")
    save(tmp_path / "prompts.txt", "fox\n")
    save(tmp_path / "run.yaml", RUN.format(here=tmp_path))

    def complaints(height: int, width: int) -> list[str]:
        config = load(tmp_path / "run.yaml", [f"student.height={height}", f"student.width={width}"])
        return list(refusals(config, recipes=tmp_path))

    assert not complaints(family.size["height"], family.size["width"])
    assert bool(complaints(33, 33)) == (name in REFUSE_33)
