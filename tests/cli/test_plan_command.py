"""`fastgen plan`: what a run costs is said before it is one, and what would make it fit."""

import re
from pathlib import Path

import pytest
import tiny
from diffusers import ConsistencyModelPipeline, UNet2DModel
from encoded import encoded, noise_image, save
from small_clip import write_clip
from small_vision import write_vision

from fastgen.cli import main
from fastgen.distillation import costs

RUN = """
out: {here}/out
device: cpu
cache: null
teacher: {{path: {here}/teacher, num_classes: 10, null_label: 10}}
student: {{steps: [1]}}
data: {{source: digits}}
sharing: full
objective: {{name: dmd2, ratio: 2, guidance: 2}}
train: {{images: 64, batch: 8, precision: bf16, cuda_graphs: false}}
log: {{trackers: []}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A config, and its teacher's folder without a weight in it."""
    teacher = tiny.class_conditional(size=16, channels=1)
    blocks = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    small = UNet2DModel.from_config({**teacher.unet.config, **blocks})
    ConsistencyModelPipeline(small, teacher.scheduler).save_pretrained(tmp_path / "teacher")
    (tmp_path / "teacher" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    save(tmp_path / "run.yaml", RUN.format(here=tmp_path))
    return tmp_path / "run.yaml"


def sizes(text: str) -> dict[str, float]:
    """The lines of memory by name, in GiB."""
    units = {"MiB": 2**-10, "GiB": 1.0}
    found = re.findall(r"^  ([a-z_: ']+?) +([\d.]+) ([MG]iB)", text, re.M)
    return {name.strip(): float(size) * units[unit] for name, size, unit in found}


def test_the_parts_of_memory_come_to_the_peak_and_seconds_to_the_stage(run, capsys):
    assert main(["plan", str(run), "train.batch=512", "--gpus", "3"]) == 0
    text = capsys.readouterr().out
    found = sizes(text)
    assert found["peak"] == pytest.approx(sum(size for name, size in found.items() if name != "peak"), abs=0.06)
    assert found["activations"] > found["gradients"]
    assert (" MiB, fits" in text) == (found["peak"] < 1), "a small network's parts are told in MiB"
    assert min(found.values()) > 0
    assert "discriminator: weights" in text
    launches, seconds = re.search(r"a cycle: ([\d,]+) launches, .* TFLOP, ([\d.]+) s", text).groups()
    assert float(seconds) == pytest.approx(39e-6 * int(launches.replace(",", "")), rel=0.01), "bound by its host"
    assert "the stage: 1 cycles" in text
    assert re.search(r"  2 cards: +[\d.]+ GiB each", text)
    assert "  3 cards: cannot share batches of 512" in text
    assert not (run.parent / "out").exists()


def test_images_of_an_autoencoder_and_rewards_of_a_later_stage_are_counted(tmp_path, capsys):
    tiny.stable_diffusion().save_pretrained(tmp_path / "teacher")
    save(tmp_path / "images/0.png", encoded(noise_image(0, 16, 16)))
    save(tmp_path / "images/0.txt", "fox")
    stages = """
  - {objective: {name: finetune}, train: {ema: 0.9}}
  - {objective: {name: refl}, carry: {real_score: ema}, rewards: {name: clip, path: CLIP}}
""".replace("CLIP", str(write_clip(tmp_path / "clip")))
    data = f"{{source: folder, path: {tmp_path}/images, size: 16}}"
    text = RUN.format(here=tmp_path).replace("{source: digits}", data).replace(", num_classes: 10, null_label: 10", "")
    text = text.replace("objective: {name: dmd2, ratio: 2, guidance: 2}", f"stages: {stages}").replace("[1]", "[2]")
    save(tmp_path / "run.yaml", text)
    assert main(["plan", str(tmp_path / "run.yaml")]) == 0
    *_, first, last = capsys.readouterr().out.split("\nstage ")
    assert "a cycle: " in first
    assert "rewards: " not in first
    assert "a cycle: " in last
    assert sizes(last).keys() >= {"codec", "rewards: clip"}


def test_the_vision_model_of_a_discriminator_is_counted(run, capsys):
    vision = write_vision(run.parent / "vision")
    assert main(["plan", str(run), "objective={name: gdd}", f"discriminator.network={vision}"]) == 0
    assert sizes(capsys.readouterr().out).keys() >= {"discriminator: weights", "discriminator: vision model"}


def test_only_what_cannot_be_counted_is_said_to_be_so(run, monkeypatch, capsys):
    raised: list[Exception] = []

    def scene(*_: object, **__: object) -> None:
        raise raised[-1]

    monkeypatch.setattr(costs, "teacher_without_weights", lambda *_: None)
    monkeypatch.setattr(costs, "check_needs", lambda *_: None)
    monkeypatch.setattr(costs, "Scene", scene)
    raised.append(NotImplementedError("no kernel for tensors without values"))
    assert main(["plan", str(run)]) == 2
    assert "cannot be counted without weights (no kernel for tensors without values)" in capsys.readouterr().err
    raised.append(TypeError("forecast() got an unexpected keyword argument"))  # a fault of ours
    with pytest.raises(TypeError):
        main(["plan", str(run)])


@pytest.mark.slow
def test_what_would_make_a_run_fit_is_tried_and_what_is_not_needed_left_out(run, capsys, monkeypatch):
    changes = (("train.ema=null",), ("train.no_such=1",), ("train.micro_batch=4",))
    monkeypatch.setattr(costs, "CHANGES", changes)
    monkeypatch.setattr(costs, "WORTH", 1e-4)
    assert main(["plan", str(run), "train.batch=512", "objective.gan=0", "--memory", "0.3"]) == 0
    text = capsys.readouterr().out
    assert "does not fit" in text
    assert "it would fit with\n    train.micro_batch=4" in text
    assert "ema" not in text


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("teacher.path=owner/nowhere", "'owner/nowhere' is neither a folder here nor in the hub's cache"),
        ("teacher.path=nowhere", "there is no pipeline folder 'nowhere'"),
    ],
)
def test_a_teacher_that_is_not_here_is_said(run, capsys, override, complaint):
    assert main(["plan", str(run), override]) == 2
    assert complaint in capsys.readouterr().err


def test_what_the_run_is_refused_for_refuses_its_plan(run, capsys):
    assert main(["plan", str(run), "teacher.num_classes=11", "teacher.null_label=null"]) == 2
    assert "the teacher has no unconditional mode" in capsys.readouterr().err
