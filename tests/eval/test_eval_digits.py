import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from dom import of_class, parse, words
from encoded import pixels_of
from PIL import Image
from torch import Tensor

from eval.digits.figures import class_balanced_labels, digits_figures, figures_by_class, real_digits, real_halves
from eval.digits.report import DigitsReport, DigitsSource, digits_report, save
from fastgen.data.digits import from_canvas, to_canvas
from fastgen.distillation import monitor
from fastgen.models.walk import Plan

REAL = real_digits()


def test_the_real_digits_are_scaled_to_one() -> None:
    assert REAL.images.shape == (1797, 64)
    assert (REAL.images.min(), REAL.images.max()) == (0, 1)


def test_labels_are_balanced() -> None:
    assert class_balanced_labels(12).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert class_balanced_labels(1797).bincount().tolist() == [180] * 7 + [179] * 3


def test_real_digits_are_perfect_by_their_own_standard() -> None:
    figures = digits_figures(REAL.images, REAL.labels)
    assert figures.frechet == pytest.approx(0, abs=1e-9)
    assert figures.accuracy > 0.98
    assert figures.diversity == 1


def test_halves_of_the_real_digits_bound_what_a_model_can_reach() -> None:
    figures = real_halves(0)
    assert 0.02 < figures.frechet < 0.12
    assert figures.accuracy > 0.96
    assert figures.diversity == pytest.approx(1, abs=0.05)
    assert real_halves(0) == figures
    assert real_halves(1) != figures


def test_halved_contrast_has_a_closed_form() -> None:
    figures = digits_figures(REAL.images.float() / 2, REAL.labels)
    mean, cov = REAL.images.mean(0), REAL.images.T.cov()
    assert figures.frechet == pytest.approx(float((mean / 2).square().sum() + cov.trace() / 4), rel=1e-6)
    assert figures.diversity == pytest.approx(0.5)


def test_a_collapsed_generator_is_accurate_and_not_diverse() -> None:
    labels = class_balanced_labels(500)
    prototypes = torch.stack([REAL.images[REAL.labels == label].mean(0) for label in range(10)])
    figures = digits_figures(prototypes[labels], labels)
    assert figures.accuracy == 1
    assert figures.diversity == pytest.approx(0, abs=1e-6)
    assert figures.frechet > 10 * real_halves(0).frechet


def test_ignoring_the_asked_digit_shows_in_the_accuracy() -> None:
    shifted = digits_figures(REAL.images, (REAL.labels + 1) % 10)
    assert shifted.accuracy < 0.02
    chance = digits_figures(REAL.images, REAL.labels[torch.randperm(1797)])
    assert chance.accuracy == pytest.approx(0.1, abs=0.03)
    assert chance.diversity > 1.2


def test_noise_is_far_from_digits() -> None:
    figures = digits_figures(torch.rand(1000, 64), class_balanced_labels(1000))
    assert figures.frechet > 100 * real_halves(0).frechet


@pytest.mark.parametrize(
    ("images", "labels", "problem"),
    [
        (torch.rand(100, 8, 8), class_balanced_labels(100), r"\[N, 64\]"),
        (torch.rand(100, 64), class_balanced_labels(99), r"\[N, 64\]"),
        (torch.rand(100, 64) * 2 - 1, class_balanced_labels(100), r"lie in \[0, 1\]"),
        (torch.full((100, 64), float("nan")), class_balanced_labels(100), "finite"),
        (torch.rand(100, 64), torch.zeros(100, dtype=torch.long), "each at least twice"),
        (torch.rand(100, 64), torch.arange(100) % 11, "0 .. 9"),
    ],
)
def test_anything_but_labelled_digits_is_refused(images: torch.Tensor, labels: torch.Tensor, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        digits_figures(images, labels)


def drawing(noise: float, contrast: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Real digits of the labels on canvases, noisier or paler."""

    def draw(labels: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(0)
        classes = [REAL.images[REAL.labels == label].float() for label in range(10)]
        picked = torch.stack([classes[label][i % len(classes[label])] for i, label in enumerate(labels.tolist())])
        noisy = contrast * picked + noise * torch.randn(picked.shape, generator=rng)
        return to_canvas(noisy.clamp(0, 1).reshape(-1, 1, 8, 8))

    return draw


@pytest.fixture(scope="module")
def report() -> DigitsReport:
    sources = {
        "teacher, 25 steps": DigitsSource(drawing(0.05), 50, steps=25),
        "teacher, 1 step": DigitsSource(drawing(0.4), 1),
        "student after kd": DigitsSource(drawing(0.2), 1),
        "student after dmd2": DigitsSource(drawing(0.05, 0.9), 1),
    }
    return digits_report(sources, seed=0)


@pytest.fixture(scope="module")
def folder(report: DigitsReport, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    save(report, folder)
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def test_the_table_has_a_line_per_row(report: DigitsReport) -> None:
    lines = report.table().splitlines()
    names = ["real half against real half", "teacher, 25 steps", "teacher, 1 step"]
    assert [line[:28].strip() for line in lines[1:]] == [*names, "student after kd", "student after dmd2"]
    assert [line.split()[-2] for line in lines[1:]] == ["-", "50", "1", "1", "1"]
    frechet = [row.metrics["frechet"].value for row in report.rows]
    assert frechet[1] < frechet[3] < frechet[2]


def test_the_rows_of_metrics_json_are_those_of_the_table(report: DigitsReport, data: dict) -> None:
    real, half, *rows = data["rows"]
    assert (real["id"], real["num"], real["metrics"]) == ("real", 1797, {})
    assert (half["id"], half["role"], half["num"], half["nfe"]) == ("held-out", "real", 898, None)
    assert [row["id"] for row in rows] == [
        "teacher-25-steps",
        "teacher-1-step",
        "student-after-kd",
        "student-after-dmd2",
    ]
    assert [row["role"] for row in rows] == ["teacher", "teacher", "student", "student"]
    assert [(row["steps"], row["nfe"]) for row in rows] == [(25, 50), (1, 1), (1, 1), (1, 1)]
    assert {row["num"] for row in rows} == {1797}
    for row, line in zip([half, *rows], report.table().splitlines()[1:], strict=True):
        values = [row["metrics"][name]["value"] for name in data["figures"]]
        assert line[28:].split()[:3] == [f"{value:.4f}" for value in values]


def test_a_row_has_the_figures_of_the_digits_it_drew(report: DigitsReport) -> None:
    expected = digits_figures(report.drawn["student-after-kd"], class_balanced_labels(1797))
    (row,) = (row for row in report.rows if row.id == "student-after-kd")
    assert {name: figure.value for name, figure in row.metrics.items()} == vars(expected)


def test_classes_average_to_the_whole() -> None:
    labels = class_balanced_labels(1000)
    digits = from_canvas(drawing(0.2)(labels))
    whole, rows = digits_figures(digits, labels), figures_by_class(digits, labels)
    assert [(row.label, row.num) for row in rows] == [(label, 100) for label in range(10)]
    assert sum(row.accuracy for row in rows) / 10 == pytest.approx(whole.accuracy)
    assert min(row.diversity for row in rows) < whole.diversity < max(row.diversity for row in rows)


def test_pictures_show_the_same_labels_and_seeds(report: DigitsReport, folder: Path, data: dict) -> None:
    gallery = data["gallery"]
    assert [(item["seed"], item["label"]) for item in gallery["items"]] == [(i, i % 10) for i in range(20)]
    teacher, student = report.drawn["teacher-25-steps"], report.drawn["student-after-dmd2"]
    for path, one in zip(gallery["images"]["student-after-dmd2"], student, strict=False):
        assert torch.equal(pixels_of(Image.open(folder / path))[0], (one.reshape(8, 8) * 255).round().to(torch.uint8))
    assert gallery["strip"]["seeds"] == [0, 10, 20, 30, 40, 50, 60, 70]
    assert gallery["strip"]["images"]["student-after-kd"][1] == "images/student-after-kd/strip-10.png"
    for seed, near in enumerate(gallery["neighbours"]["teacher-25-steps"]):
        away = (REAL.images - teacher[seed]).norm(dim=1)
        assert near[0]["distance"] == pytest.approx(float(away.min()), rel=1e-4)
        assert near[0]["index"] == int(away.argmin())


def test_half_of_the_real_digits_is_no_reason_to_warn(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    assert "differ in N" not in text
    assert 'class="warnings"' not in text


@pytest.mark.parametrize(("guidance", "doubled"), [(1.5, 2), (1.0, 1)])
def test_a_run_reports_the_steps_of_a_guided_teacher_and_twice_as_many_calls(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, guidance: float, doubled: int
) -> None:
    given: dict[str, DigitsSource] = {}

    def report_of(sources: dict[str, DigitsSource], *, seed: int) -> DigitsReport:
        given.update(sources)
        return DigitsReport((), {}, seed, torch.device("cpu"), datetime.now(UTC))

    monkeypatch.setattr(monitor, "digits_report", report_of)
    monkeypatch.setattr(monitor, "save", lambda *_: None)
    student = MagicMock(plan=Plan([torch.tensor([1.0, 0.5])]))
    student.config.evaluate.configure_mock(protocol="digits", teacher_steps=25, teacher_guidance=guidance)
    monitor._report_digits(student, MagicMock(weights={"dmd2": {}}))
    assert {name: (one.nfe, one.steps or one.nfe) for name, one in given.items()} == {
        "teacher, 25 steps": (25 * doubled, 25),
        "teacher, 2 steps": (2 * doubled, 2),
        "student after dmd2": (2, 2),
    }
    given["teacher, 25 steps"].draw(torch.arange(3))
    assert student.draw_teacher.call_args.kwargs == {"steps": 25, "guidance": guidance}


def test_the_page_stops_at_every_stage(folder: Path) -> None:
    root = parse((folder / "report.html").read_text())
    assert [option.get("label") for option in root.findall(".//datalist/option")] == ["after kd", "after dmd2"]
    grids = {(one.get("data-steps"), words(one[0])) for one in of_class(root, "figure", "grid")}
    assert {("after dmd2", "student after dmd2"), ("after kd", "teacher, 1 step")} <= grids
    assert not any("was not measured" in caption for _, caption in grids)
