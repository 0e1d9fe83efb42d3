"""What quality while training is made of: digits, a network on images, and what cannot be measured."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import small_run
import tiny
import torch
from digits_side import digits_figures, few_real_digits
from encoded import encoded, noise_image, save
from measured import DMD2, TRAIN, WEIGHTS, logged
from PIL import Image
from pydantic import ValidationError
from small_clip import write_clip
from torch import Tensor

from fastgen.config.evaluate import EvaluateConfig
from fastgen.config.schema import Config
from fastgen.data import ImageFolder, Mixture
from fastgen.data.buckets import Buckets
from fastgen.data.digits import from_canvas
from fastgen.distillation import distil as conductor
from fastgen.distillation import student
from fastgen.distillation.distil import distil, ready
from fastgen.distillation.monitor import monitor
from fastgen.distillation.monitor.view import references
from fastgen.distillation.student import Student
from fastgen.engine.distributed import disconnect
from fastgen.engine.quality import Quality
from fastgen.errors import UserError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.sampling.sampler import renoise, seeded_noise

CPU = torch.device("cpu")


pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    return folder


def digits_config(folder: Path, out: Path) -> Config:
    evaluate = {"protocol": "digits", "num": 20, "every": 4, "teacher_steps": 1}
    return small_run.run_config(folder, images=12, out=out, evaluate=evaluate)


def measured_run(*args: object) -> None:
    """In a process of its own."""
    with few_real_digits():
        small_run.run_or_die(*args)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """A run of two stages, measured by digits, that nothing interrupts."""
    config = digits_config(folder, tmp_path_factory.mktemp("whole") / "run")
    assert small_run.in_processes(1, measured_run, config, False, None) == [0]
    return config.out


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[(1, 5)], [(0, 4), (1, 2), (1, 5)]])
def test_a_measured_run_that_is_killed_ends_as_if_nothing_had_happened(kills, folder, whole, tmp_path):
    broken = digits_config(folder, tmp_path / "run")
    for number, at in enumerate(kills):
        assert small_run.in_processes(1, measured_run, broken, number > 0, at) == [-9]
    assert small_run.in_processes(1, measured_run, broken, True, None) == [0]
    places = ["log.jsonl", WEIGHTS, *(f"{part}/generator.safetensors" for part in ("best", "stages/kd", "stages/dmd2"))]
    for place in [*places, "best/about.json"]:
        assert (broken.out / place).read_bytes() == (whole / place).read_bytes(), place
    reports = [json.loads((run / "report/metrics.json").read_text())["rows"] for run in (whole, broken.out)]
    names = [row["title"] for row in reports[0]]
    assert names[-2:] == ["student after kd", "student after dmd2"]
    assert [(row["title"], row["metrics"]) for row in reports[1]] == [(r["title"], r["metrics"]) for r in reports[0]]


def test_the_figures_of_digits_are_those_of_the_exported_student(folder, whole):
    about = json.loads((whole / "best/about.json").read_text())
    student = Student(digits_config(folder, whole), Pipeline.load(str(whole / "student"), device=CPU), CPU)
    labels = torch.arange(20) % 10
    noise = seeded_noise(range(20), student.pipeline.shape, CPU)
    cond = student.pipeline.condition(20, labels=labels)
    canvases = renoise(student.pipeline.denoiser(), noise, cond, student.plan.grids[0].tolist())
    with few_real_digits():
        expected = digits_figures(from_canvas(canvases), labels)
    assert {name: about[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    measured = [record for record in logged(whole) if "quality/frechet" in record and record["stage"] == 1]
    assert [record["images"] for record in measured] == [0, 4, 8, 12]
    assert about["frechet"] == min(record["quality/frechet"] for record in measured)


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "clip")


def test_prompts_are_measured_by_a_network_on_decoded_samples_of_a_lora(clip, tmp_path):
    tiny.stable_diffusion().save_pretrained(tmp_path / "teacher")
    (tmp_path / "prompts.txt").write_text("a cab\na bed\nfog\n")
    for seed in range(30):
        save(tmp_path / "real" / f"{seed}.png", encoded(noise_image(seed, 16, 16)))
    evaluate = {"protocol": "clip", "extractor": str(clip), "reference": tmp_path / "real", "num": 24, "every": 2}
    config = small_run.run_config(
        tmp_path,
        cache=None,
        student={"steps": [1]},
        sharing="lora",
        lora={"rank": 2},
        data={"source": "prompts", "path": tmp_path / "prompts.txt"},
        evaluate={**evaluate, "metric": "clip_score"},
        stages=[{**DMD2, "train": {**TRAIN, "images": 4}}],
    )
    said = []
    try:
        distil(config, recipes=tmp_path)
    except UserError as error:
        said.append(str(error))
    measured = [record for record in logged(config.out) if "quality/fid" in record]
    assert [record["images"] for record in measured] == [0, 2, 4]
    assert all({"quality/kid", "quality/clip_score"} <= record.keys() for record in measured)
    best = json.loads((config.out / "best/about.json").read_text())
    assert best["clip_score"] == max(record["quality/clip_score"] for record in measured)
    untrained = "nothing but zeros"  # is what a LoRA has that was best at first, and it is not exported
    assert [untrained in refusal for refusal in said] == [True] * (best["images"] == 0)


def test_the_reference_is_named_or_the_training_images(clip, tmp_path):
    images = small_run.Stripes().items(range(40)).images
    for number, image in enumerate((127.5 * images + 127.5).round().byte().permute(0, 2, 3, 1).numpy()):
        save(tmp_path / "real" / f"{number:02d}.png", encoded(Image.fromarray(image)))
    shown = [images]

    def drawn(_model: object, numbers: range) -> Tensor:
        return shown[-1][numbers.start : numbers.stop]

    for reference in (None, tmp_path / "real"):
        evaluate = {"protocol": "clip", "extractor": str(clip), "num": 40, "reference": reference}
        student = student_of((3, 8, 8), 10, small_run.Stripes(), **evaluate)
        student.drawn, student.pictures = drawn, lambda samples: samples
        student.batches = lambda count: [range(25), range(25, count)]
        student.asked = lambda _: SimpleNamespace(labels=None, prompts=None)
        measure = monitor(student, here=True).yardstick
        stage = SimpleNamespace(roles=SimpleNamespace(generator=None))
        shown.append(images)
        assert measure.metric == "fid"
        assert measure.figures([measure.look(stage)])["fid"] == pytest.approx(0, abs=1e-6)
        shown.append(images.flip(2) + 0.3)
        assert measure.figures([measure.look(stage)])["fid"] > 1e-3
        shown.append(images * math.nan)
        assert math.isnan(measure.figures([measure.look(stage)])["fid"])


def student_of(shape: tuple[int, ...], classes: int, data: object, **evaluate: object) -> SimpleNamespace:
    pipeline = SimpleNamespace(shape=shape, classes=range(classes))
    return SimpleNamespace(
        config=SimpleNamespace(evaluate=EvaluateConfig(**evaluate), data=data, prompts=data.prompts, chosen=None),
        pipeline=pipeline,
        device=CPU,
    )


def test_what_cannot_be_measured_is_refused_before_training(clip):
    data_free = SimpleNamespace(has_images=False, prompts=("a",))
    with pytest.raises(UserError, match=r"\(4, 8, 8\) with 0 classes.*choose another protocol"):
        monitor(student_of((4, 8, 8), 0, data_free, protocol="digits"), here=True)
    with pytest.raises(UserError, match=r"metric is fid, which this protocol does not have: use frechet, accuracy"):
        monitor(student_of((1, 16, 16), 10, data_free, protocol="digits", metric="fid"), here=True)
    with pytest.raises(UserError, match=r"metric is clip_score, which this protocol does not have: use fid"):
        monitor(student_of((4, 8, 8), 0, data_free, protocol="domain", metric="clip_score"), here=False)
    with pytest.raises(UserError, match=r"the data has no images: give evaluate.reference=FOLDER"):
        monitor(student_of((4, 8, 8), 0, data_free, protocol="clip", extractor=str(clip)), here=True)
    assert conductor._monitor(student_of((4, 8, 8), 0, data_free), here=True) is None


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"protocol": "digits", "extractor": "x"}, "remove `extractor` and `reference`"),
        ({"patience": 2}, "choose a `protocol`"),
        ({"protocol": "digits", "num": 19}, "greater than or equal to 20"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings, why):
    with pytest.raises(ValidationError, match=why):
        EvaluateConfig(**settings)


def measured_in_shares(folder: Path, out: Path, count: int) -> None:
    """In one of so many processes: the figures of an untrained generator that draws in five batches."""
    config = small_run.run_config(
        folder, out=out, student={"steps": [1]}, stages=[DMD2], evaluate={"protocol": "digits", "num": 50}
    )
    student.SAMPLES_AT_ONCE = 10
    with few_real_digits(), ready(config, recipes=folder) as made:
        stage = made.run.stage(0, None)
        assert made.monitor is not None
        part = made.monitor.yardstick.look(stage)
        assert part.count == {1: [50], 2: [20, 30]}[count][stage.accelerator.process_index]
        figures = Quality(made.monitor.yardstick, config.evaluate, out / "best").measure(stage)
        if stage.accelerator.is_main_process:
            (out / "figures.json").write_text(json.dumps(figures))
    disconnect()


def test_two_processes_measure_their_shares_and_find_what_one_does(folder: Path, tmp_path: Path):
    found = []
    for count in (1, 2):
        out = tmp_path / str(count)
        assert small_run.in_processes(count, measured_in_shares, folder, out, count) == [0] * count
        found.append(json.loads((out / "figures.json").read_text()))
    assert found[0].keys() == {"quality/frechet", "quality/accuracy", "quality/diversity"}
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_training_images_of_several_shapes_are_compared_with_in_one(tmp_path):
    for number, shape in enumerate([(16, 16), (24, 8), (8, 24)]):
        save(tmp_path / f"{number}.png", encoded(noise_image(number, *shape)))
    data = ImageFolder(tmp_path, 16, buckets=Buckets(step=8, ratio=3.0))
    evaluate = EvaluateConfig(protocol="domain", extractor="any")
    mixed = Mixture((data, data), (1.0, 1.0))
    student = SimpleNamespace(config=SimpleNamespace(evaluate=evaluate, data=mixed, chosen=None))
    (batch,) = references(student, None)
    assert batch.images.shape == (6, 3, 16, 16)
    assert torch.equal(batch.images[1] / 127.5 - 1, ImageFolder(tmp_path, 16).items([1]).images[0])
