"""The report of a digits run: drawn by functions, measured as any protocol's, shown as any page."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import tiny
import torch
from digits_side import digits_figures
from dom import of_class, parse, words
from encoded import pixels_of
from PIL import Image
from torch import Tensor, nn

from eval.cli import build_parser, run
from eval.digits.images import real_digits, real_halves
from eval.evaluate import compare, floor
from eval.images.decode import ImageBatch
from eval.images.drawing import DrawnSource
from eval.measure import Side
from eval.metrics_json import Report
from eval.options import Options
from eval.processes import Processes
from eval.report.showcase import contact_sheet
from eval.rows import Origin
from eval.session import open_session
from fastgen.config.evaluate import EvaluateConfig
from fastgen.distillation import monitor
from fastgen.distillation.monitor.report import _sides
from fastgen.errors import UserError
from fastgen.models.walk import Plan

REAL = real_digits()
CPU = torch.device("cpu")


def drawing(noise: float, network: nn.Module, *, calls: int, contrast: float = 1.0) -> Callable[..., ImageBatch]:
    """Real digits of what is asked for, noisier or paler, image by image from its seed."""

    def draw(seeds: Sequence[int], numbers: Sequence[int]) -> ImageBatch:
        rows = []
        for seed, number in zip(seeds, numbers, strict=True):
            rng = torch.Generator().manual_seed(seed)
            digits = REAL.images[REAL.labels == number % 10].float()
            rows.append(contrast * digits[seed % len(digits)] + noise * torch.randn(64, generator=rng))
        images = torch.stack(rows).clamp(0, 1).reshape(-1, 1, 8, 8)
        for _ in range(calls):
            network(images)
        labels = torch.tensor(numbers) % 10
        return ImageBatch(images, labels, conditions=labels)

    return draw


def side(id: str, title: str, noise: float, *, steps: int, calls: int, contrast: float = 1.0) -> Side:
    network = nn.Identity()
    source = DrawnSource(
        origin=Origin("digits", "pipeline", first_seed=0, dtype="float32"),
        steps=steps,
        draw=drawing(noise, network, calls=calls, contrast=contrast),
        asked=lambda numbers: {"labels": [number % 10 for number in numbers]},
        network=network,
        device=CPU,
        batch_size=256,
    )
    return Side(id, title.split(maxsplit=1)[0].strip(","), title, (source,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    options = Options(protocol="digits", num=1797, device="cpu", gallery=20, out=folder)
    sides = [
        floor(*real_halves(0)),
        side("teacher-25-steps", "teacher, 25 steps", 0.05, steps=25, calls=50),
        side("teacher-1-step", "teacher, 1 step", 0.4, steps=1, calls=1),
        side("student-after-kd", "student after kd", 0.2, steps=1, calls=1),
        side("student-after-dmd2", "student after dmd2", 0.05, steps=1, calls=1, contrast=0.9),
    ]
    report = compare(open_session(options, {}, Processes()), sides)
    contact_sheet(report, folder).save(folder / "digits.png")
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def drawn(noise: float, contrast: float = 1.0) -> tuple[Tensor, Tensor]:
    batch = drawing(noise, nn.Identity(), calls=0, contrast=contrast)(range(1797), range(1797))
    return batch.images.flatten(1), batch.labels


def test_rows_are_the_real_halves_and_what_was_drawn(data: dict) -> None:
    real, half, *rows = data["rows"]
    assert (real["id"], real["num"], real["metrics"]) == ("real", 1797, {})
    assert (half["id"], half["title"], half["role"]) == ("held-out", "real half against real half", "real")
    assert (half["num"], half["nfe"]) == (898, None)
    ids = ["teacher-25-steps", "teacher-1-step", "student-after-kd", "student-after-dmd2"]
    assert [row["id"] for row in rows] == ids
    assert [row["role"] for row in rows] == ["teacher", "teacher", "student", "student"]
    assert [(row["steps"], row["nfe"]) for row in rows] == [(25, 50), (1, 1), (1, 1), (1, 1)]
    assert {row["num"] for row in rows} == {1797}
    assert list(data["figures"]) == ["frechet", "accuracy", "diversity"]


def test_a_row_has_the_figures_of_the_digits_it_drew(data: dict) -> None:
    found = {row["id"]: {name: figure["value"] for name, figure in row["metrics"].items()} for row in data["rows"]}
    half, other = real_halves(0)
    assert found["held-out"] == pytest.approx(digits_figures(half.digits.images, half.digits.labels, other), rel=1e-9)
    assert found["student-after-kd"] == pytest.approx(digits_figures(*drawn(0.2)), rel=1e-9)
    assert found["student-after-dmd2"] == pytest.approx(digits_figures(*drawn(0.05, 0.9)), rel=1e-9)
    assert found["teacher-25-steps"]["frechet"] < found["student-after-kd"]["frechet"]


def test_the_real_images_and_their_halves_are_named(data: dict) -> None:
    assert data["provenance"]["reference"]["path"] == data["rows"][0]["source"]["path"] == "scikit-learn load_digits"
    assert data["provenance"]["seeds"] == [0, 1796]
    assert data["rows"][1]["source"]["path"].endswith("a half by seed 0")


def test_pictures_show_the_same_labels_and_seeds(folder: Path, data: dict) -> None:
    gallery = data["gallery"]
    assert [(item["seed"], item["label"]) for item in gallery["items"]] == [(i, i % 10) for i in range(20)]
    assert set(gallery["images"]) == {row["id"] for row in data["rows"]} - {"held-out"}
    student, _ = drawn(0.05, 0.9)
    for path, one in zip(gallery["images"]["student-after-dmd2"], student, strict=False):
        assert torch.equal(pixels_of(Image.open(folder / path))[0], (one.reshape(8, 8) * 255).round().to(torch.uint8))
    assert gallery["strip"]["label"] == 0
    assert gallery["strip"]["seeds"] == list(range(8))
    teacher, _ = drawn(0.05)
    for seed, near in enumerate(gallery["neighbours"]["teacher-25-steps"]):
        away = (REAL.images - teacher[seed]).norm(dim=1)
        assert near[0]["distance"] == pytest.approx(float(away.min()), rel=1e-4)
        assert near[0]["index"] == int(away.argmin())
        shown = pixels_of(Image.open(folder / near[0]["image"]))[0]
        assert torch.equal(shown, (REAL.images[near[0]["index"]].reshape(8, 8) * 255).round().to(torch.uint8))


def test_half_of_the_real_digits_is_no_reason_to_warn(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "differ in N" not in text
    assert 'class="warnings"' not in text


def test_the_page_stops_at_every_stage(folder: Path) -> None:
    root = parse((folder / "report.html").read_text())
    assert [option.get("label") for option in root.findall(".//datalist/option")] == ["after kd", "after dmd2"]
    grids = {(one.get("data-steps"), words(one[0])) for one in of_class(root, "figure", "grid")}
    assert {("after dmd2", "student after dmd2"), ("after kd", "teacher, 1 step")} <= grids
    assert not any("was not measured" in caption for _, caption in grids)


def test_the_contact_sheet_has_the_real_row_and_every_drawn_one(folder: Path) -> None:
    sheet = Image.open(folder / "digits.png")
    assert 5 * 8 * 6 < sheet.height < 6 * 8 * 6 + 5 * 8
    assert sheet.width > 20 * 8 * 6


@pytest.mark.parametrize("guidance", [1.5, 1.0])
def test_a_run_reports_the_steps_of_a_guided_teacher_and_each_stage(guidance: float) -> None:
    student = MagicMock(plan=Plan([torch.tensor([1.0, 0.5])]), device=CPU)
    spec = EvaluateConfig(protocol="digits", teacher_steps=25, teacher_guidance=guidance)
    student.config = SimpleNamespace(evaluate=spec, seed=3, prompts=None)
    student.asked = lambda numbers: SimpleNamespace(labels=torch.tensor(numbers) % 10, prompts=None)
    student.sample_teacher.side_effect = lambda *_, seeds, **__: torch.zeros(len(seeds), 1, 16, 16)
    half, *sides = _sides(student, MagicMock(weights={"dmd2": {}}))
    assert "seed 3" in half.against.origin.path
    assert [(one.id, one.sources[0].steps) for one in sides] == [
        ("teacher-25-steps", 25),
        ("teacher-2-steps", 2),
        ("student-after-dmd2", 2),
    ]
    batch = sides[0].sources[0].draw([7, 8], [0, 1])
    assert batch.images.shape == (2, 1, 8, 8)
    assert student.sample_teacher.call_args.kwargs == {"seeds": [7, 8], "steps": 25, "guidance": guidance}


def test_a_run_is_watched_by_all_figures_of_digits() -> None:
    student = MagicMock(device=CPU)
    student.config.evaluate = EvaluateConfig(protocol="digits", metric="accuracy")
    student.config.prompts = None
    student.pipeline.shape, student.pipeline.classes = (1, 16, 16), range(10)
    student.batches = lambda count: [range(count)]
    student.drawn = lambda model, numbers: torch.rand(len(numbers), 1, 16, 16)
    student.asked = lambda numbers: SimpleNamespace(labels=torch.tensor(numbers) % 10, prompts=None)
    yardstick = monitor.monitor(student, here=True).yardstick
    assert yardstick.metric == "accuracy"
    assert yardstick.figures([yardstick.look(MagicMock())]).keys() == {"frechet", "accuracy", "diversity"}


# The command line


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder)
    return folder


def evaluated(*given: str) -> int:
    return run(build_parser().parse_args(["--protocol", "digits", "--device", "cpu", *given]))


def test_a_pipeline_is_measured_against_digits_that_come_along(pipeline: Path, tmp_path: Path) -> None:
    given = ["--student", str(pipeline), "--steps", "1", "--num-images", "80", "--gallery", "4", "--out", str(tmp_path)]
    assert evaluated(*given, "--assert", "frechet[1] < 1000", "--assert", "accuracy >= 0") == 0
    report = Report.read(tmp_path)
    assert [row.id for row in report.rows] == ["real", "held-out", "student-1"]
    assert {row.id: row.num for row in report.rows} == {"real": 1797, "held-out": 898, "student-1": 80}
    assert [row.nfe for row in report.rows] == [None, None, 1]
    assert list(report.rows[-1].metrics) == ["frechet", "accuracy", "diversity"]
    assert [row.num for row in report.rows[-1].per_class] == [8] * 10
    assert Image.open(tmp_path / report.gallery.images["student-1"][0]).size == (8, 8)
    assert not report.rows[-1].not_measured


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (("--clip", "clip"), "--clip names a network, but the protocol digits measures nothing with it"),
        (("--metrics", "fid"), "--metrics names 'fid', which is no metric"),
        (("--assert", "fid < 3"), "names fid, which is no figure"),
        (("--extractor", "some"), "looks with no network"),
        (("--real-images", "some"), "goes with a reference of statistics"),
        (
            ("--protocol", "domain"),
            "the protocol domain compares with real images of yours: name them with",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(pipeline: Path, tmp_path: Path, given: tuple[str, ...], why: str) -> None:
    with pytest.raises(UserError, match=why):
        evaluated("--student", str(pipeline), "--num-images", "80", "--out", str(tmp_path / "out"), *given)
