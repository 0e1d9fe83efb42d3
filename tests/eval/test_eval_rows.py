"""Rows of an evaluation: whose images they are of, on what terms, and the table that is printed."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import small_run
import tiny
import torch
from encoded import noise_image, pixels_of, save
from eval_place import COUNT, EXTRACTOR_OPTIONS, evaluate, place, rows_of, value
from PIL import Image
from transformers import ResNetForImageClassification

from eval.images.costs import Costs
from eval.measures.figure import Figure
from eval.measures.statistics_file import load_statistics
from eval.metrics import catalogue
from eval.metrics_json import Protocol, Provenance, RealImages, Report
from eval.options import Options
from eval.report.table import table
from eval.rows import Origin, Role, Row
from fastgen.cli import main
from fastgen.models.pipelines import loading
from fastgen.models.pipelines.notes import Notes
from fastgen.sampling import stock

__all__ = ["place"]


def test_the_figures_are_those_of_the_sampled_images(place: Path, tmp_path: Path) -> None:
    drawing = ["--steps", "2", "--seed", "3", "--batch-size", "7"]
    assert evaluate(place, tmp_path, "--student", str(place / "student"), *drawing) == 0
    (_, student) = rows_of(tmp_path)
    pipe = loading.load(place / "student", device="cpu")
    labels = [i % 10 for i in range(COUNT)]
    batches = stock.generate(pipe, seeds=range(3, 3 + COUNT), steps=2, labels=labels)
    drawn = torch.cat([batch.images for batch in batches])
    sampled = (drawn * 255).round().to(torch.uint8)
    real = torch.stack([torch.from_numpy(np.array(noise_image(seed, 16, 16))).permute(2, 0, 1) for seed in range(30)])

    model = ResNetForImageClassification.from_pretrained(place / "extractor").eval()
    with torch.no_grad():
        features, reference = (
            model.resnet(images.float() / 127.5 - 1).pooler_output.flatten(1).double() for images in (sampled, real)
        )
        hits = model(sampled.float() / 127.5 - 1).logits.argmax(1) == torch.tensor(labels)
    roots = [(z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (features, reference)]
    spread = sum(float(root.square().sum()) for root in roots)
    nuclear = float(torch.linalg.svdvals(roots[0] @ roots[1].T).sum())
    expected = float((features.mean(0) - reference.mean(0)).square().sum()) + spread - 2 * nuclear
    assert value(student, "fid") == pytest.approx(expected, rel=1e-4)
    assert value(student, "accuracy") == pytest.approx(float(hits.float().mean()))


def test_stored_statistics_give_the_same_figures(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tmp_path / "real.npz"
    assert evaluate(place, tmp_path, "--save-stats", str(stored)) == 0
    assert not (tmp_path / "metrics.json").exists()
    assert load_statistics(stored).count == 30
    assert f"statistics of the reference are in {stored}" in capsys.readouterr().out
    student = ["--student", str(place / "student"), "--steps", "1"]
    assert evaluate(place, tmp_path / "images", *student) == 0
    spectrum = ["--real-images", str(place / "real")]
    assert evaluate(place, tmp_path / "stored", *student, *spectrum, reference=str(stored)) == 0
    from_images, from_stored = rows_of(tmp_path / "images")[1], rows_of(tmp_path / "stored")[1]
    assert value(from_stored, "fid") == pytest.approx(value(from_images, "fid"), rel=1e-9)
    for name in ("spectrum_gap", "swd", "saturation_ratio"):
        assert value(from_stored, name) == pytest.approx(value(from_images, name), rel=1e-6)
    assert from_stored["spectrum"] == from_images["spectrum"]
    assert "not stored in a statistics file" in from_stored["not_measured"]["kid"]
    assert evaluate(place, tmp_path / "plain", *student, reference=str(stored)) == 0
    plain = rows_of(tmp_path / "plain")[1]
    assert plain["spectrum"]["bands"] == []
    assert "--real-images" in plain["not_measured"]["saturation_ratio"]


def test_image_folders_serve_as_student(place: Path, tmp_path: Path) -> None:
    assert evaluate(place, tmp_path, "--student", str(place / "real"), "--num", "30") == 0
    (_, row) = rows_of(tmp_path)
    assert value(row, "fid") == pytest.approx(0, abs=1e-9)
    assert [value(row, name) for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert [value(row, name) for name in ("swd", "nyquist_peak", "spectrum_gap")] == [0, 0, 0]
    assert (row["steps"], row["nfe"], row["costs"], row["per_class"]) == (None, None, None, None)
    assert "no class labels" in row["not_measured"]["accuracy"]
    assert "asked for alike" in row["not_measured"]["diversity"]


def test_a_text_pipeline_takes_prompts_in_turn_and_guidance_counts_twice(place: Path, tmp_path: Path) -> None:
    tiny.stable_diffusion().save_pretrained(tmp_path / "student")
    prompts = save(tmp_path / "prompts.txt", "a cab\na bed\n")
    sides = ["--student", str(tmp_path / "student"), "--steps", "1", "--guidance", "2"]
    assert evaluate(place, tmp_path / "none", *sides) == 2
    assert evaluate(place, tmp_path / "out", *sides, "--prompts", str(prompts)) == 0
    (_, row) = rows_of(tmp_path / "out")
    assert (row["nfe"], row["source"]["guidance"]) == (2, 2)
    assert value(row, "diversity") > 0


def test_time_of_the_consumer_does_not_count() -> None:
    def batches() -> Iterator[stock.Drawn]:
        for _ in range(3):
            time.sleep(0.01)
            yield stock.Drawn(torch.zeros(2, 1), ((), ()))

    costs = Costs()
    for _ in costs.timing(batches()):
        time.sleep(0.1)
    bill = Costs.bill([costs, costs], batch_size=2)
    assert 0.005 <= bill.seconds_per_image < 0.04
    assert bill.images_per_second == pytest.approx(2 / bill.seconds_per_image)
    assert (bill.nfe, bill.peak_memory_gib is None) == (None, not torch.cuda.is_available())


def test_classes_of_another_extractor_give_no_accuracy(place: Path, tmp_path: Path) -> None:
    Notes(steps=(1,), num_classes=7, null_label=10).write(tmp_path)
    tiny.class_conditional(size=16).save_pretrained(tmp_path / "seven")
    (tmp_path / Notes.FILE).rename(tmp_path / "seven" / Notes.FILE)
    assert evaluate(place, tmp_path / "out", "--student", str(tmp_path / "seven")) == 0
    assert "7 values from 0 to 6" in rows_of(tmp_path / "out")[1]["not_measured"]["accuracy"]


def test_pictures_of_the_same_seeds_stand_beside_the_report(place: Path, tmp_path: Path) -> None:
    sides = ["--student", str(place / "student"), "--teacher", str(place / "teacher"), "--teacher-steps", "3"]
    options = ["--steps", "2", "--gallery", "4", "--seed", "7", "--metrics", "fid"]
    assert evaluate(place, tmp_path, *sides, *options, reference="labelled.parquet") == 0
    gallery = json.loads((tmp_path / "metrics.json").read_text())["gallery"]
    assert [item["seed"] for item in gallery["items"]] == [7, 8, 9, 10]
    assert [(item["label"], item["class_name"]) for item in gallery["items"][:2]] == [(0, "a"), (1, "b")]
    assert list(gallery["images"]) == ["real", "teacher-3", "teacher-2", "student-2"]
    pipe = loading.load(place / "student", device="cpu")
    (drawn,) = stock.generate(pipe, seeds=range(7, 11), steps=2, labels=range(4))
    for path, expected in zip(gallery["images"]["student-2"], drawn.images, strict=True):
        assert torch.equal(pixels_of(Image.open(tmp_path / path)), (expected * 255).round().to(torch.uint8))
    strip = gallery["strip"]
    assert (strip["label"], strip["seeds"]) == (0, list(range(7, 15)))
    assert strip["images"]["student-2"][0] == "images/student-2/strip-7.png"
    same, other = (pixels_of(Image.open(tmp_path / path)) for path in strip["images"]["student-2"][:2])
    assert torch.equal(same, pixels_of(Image.open(tmp_path / gallery["images"]["student-2"][0])))
    (again,) = stock.generate(pipe, seeds=[8], steps=2, labels=[0])
    assert torch.equal(other, (again.images[0] * 255).round().to(torch.uint8))
    assert "real" not in gallery["neighbours"]
    for found in gallery["neighbours"]["student-2"]:
        assert [one["distance"] for one in found] == sorted(one["distance"] for one in found)
        for one in found:
            picture = pixels_of(Image.open(tmp_path / one["image"]))
            assert torch.equal(picture, pixels_of(noise_image(one["index"], 16, 16)))


def test_a_real_image_is_its_own_nearest_neighbour(place: Path, tmp_path: Path) -> None:
    assert evaluate(place, tmp_path, "--student", str(place / "real"), "--gallery", "5") == 0
    neighbours = json.loads((tmp_path / "metrics.json").read_text())["gallery"]["neighbours"]["student"]
    assert [found[0]["index"] for found in neighbours] == [0, 1, 2, 3, 4]
    assert all(found[0]["distance"] < 1e-6 for found in neighbours)


def test_held_out_real_images_are_the_floor(place: Path, tmp_path: Path) -> None:
    assert evaluate(place, tmp_path, "--held-out", str(place / "labelled.parquet"), "--metrics", "fid,accuracy") == 0
    (real, floor) = rows_of(tmp_path)
    assert [row["role"] for row in (real, floor)] == ["real", "real"]
    assert floor["id"] == "held-out"
    assert value(floor, "fid") >= 0
    assert (floor["num"], floor["per_class"][0]["name"]) == (COUNT, "a")


def test_labels_come_from_a_file_in_turn(place: Path, tmp_path: Path) -> None:
    labels = save(tmp_path / "labels.txt", "3\n1\n")
    student = ["--student", str(place / "student"), "--steps", "1", "--labels", str(labels), "--metrics", "diversity"]
    assert evaluate(place, tmp_path / "out", *student) == 0
    assert [(entry["label"], entry["num"]) for entry in rows_of(tmp_path / "out")[1]["per_class"]] == [(1, 12), (3, 12)]
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["provenance"]["labels"]["count"] == 2


def test_a_class_conditional_pixel_teacher_is_guided(place: Path, tmp_path: Path) -> None:
    teacher = ["--teacher", str(place / "teacher"), "--teacher-steps", "3", "--teacher-guidance", "1.5"]
    assert evaluate(place, tmp_path / "out", *teacher, "--gallery", "1") == 0
    (_, row) = rows_of(tmp_path / "out")
    assert (row["nfe"], row["source"]["guidance"]) == (6, 1.5)
    shown = pixels_of(Image.open(tmp_path / "out" / "images" / "teacher-3" / "0.png"))

    pipe = loading.load(place / "teacher", device="cpu")
    pipe.scheduler.set_timesteps(3)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for t in pipe.scheduler.timesteps:
            cond, uncond = (pipe.unet(x, t, class_labels=torch.tensor([label])).sample for label in (0, 10))
            x = pipe.scheduler.step(uncond + 1.5 * (cond - uncond), t, x).prev_sample
    expected = ((x[0] / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    assert (shown.int() - expected.int()).abs().max() <= 1


def test_the_batch_size_changes_nothing(place: Path, tmp_path: Path) -> None:
    student = ["--student", str(place / "student"), "--steps", "1"]
    for size in ("24", "5"):
        assert evaluate(place, tmp_path / size, *student, "--batch-size", size) == 0
    one, other = (rows_of(tmp_path / size)[1]["metrics"] for size in ("24", "5"))
    for name, figure in one.items():
        assert figure["value"] == pytest.approx(other[name]["value"], rel=1e-5, abs=1e-9), name


def test_two_processes_give_the_figures_of_one(place: Path, tmp_path: Path) -> None:
    sides = ["--student", str(place / "student"), "--steps", "2", "--device", "cpu", "--num-images", str(COUNT)]
    paths = ["--reference", str(place / "labelled.parquet"), "--extractor", str(place / "extractor")]
    more = ["--metrics", "fid,kid,prdc,diversity,colour,spectrum,swd,accuracy,vendi,inception_score"]
    arguments = [*paths, *sides, *more, *EXTRACTOR_OPTIONS, "--seeds", "2"]
    assert main(["eval", *arguments, "--out", str(tmp_path / "one")]) == 0
    assert small_run.in_processes(2, main, ["eval", *arguments, "--out", str(tmp_path / "two")]) == [0, 0]
    for alone, together in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert together["num"] == alone["num"]
        for ours, theirs in zip(alone["per_class"], together["per_class"], strict=True):
            assert (theirs["label"], theirs["num"], theirs["accuracy"]) == (
                ours["label"],
                ours["num"],
                ours["accuracy"],
            )
            assert theirs["diversity"] == pytest.approx(ours["diversity"], rel=1e-6)
        for name, figure in alone["metrics"].items():
            assert together["metrics"][name]["value"] == pytest.approx(figure["value"], rel=1e-6, abs=1e-9), name
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["provenance"]["processes"] == 2


def from_where() -> Provenance:
    return Provenance(
        reference=RealImages("r", "images", 9, 0),
        seeds=None,
        prompts=None,
        labels=None,
        processes=1,
        settings={},
        device="cpu",
        versions={},
        command="eval",
        started="2026-01-02T03:04:05+00:00",
        seconds=1.0,
    )


def test_what_only_the_real_images_lack_is_no_footnote() -> None:
    def row(role: Role, *, clip: bool) -> Row:
        figures = {"fid": Figure(1), **({"clip_score": Figure(30)} if clip else {})}
        missing = {} if clip else {"clip_score": f"the {role} has no prompts"}
        return Row(role, role, role, Origin("s", "pipeline"), 9, figures, {**missing, "kid": "why"})

    options = Options(reference=Path("r"))
    note = Protocol("clean", "e", 8, True, "float32", 0, "e", (), None)

    def footnotes(*rows: Row) -> list[str]:
        report = Report(protocol=note, figures=catalogue(rows), rows=rows, gallery=None, provenance=from_where())
        return [line for line in table(report, options).splitlines() if line.startswith("no ")]

    assert footnotes(row("real", clip=False), row("student", clip=True)) == ["no kid: why."]
    assert footnotes(row("real", clip=False), row("student", clip=False)) == [
        "no clip_score: the student has no prompts.",
        "no kid: why.",
    ]
    assert footnotes(row("teacher", clip=False), row("student", clip=True)) == [
        "no clip_score of teacher: the teacher has no prompts.",
        "no kid: why.",
    ]


def test_autocast_is_named_in_the_row(place: Path, tmp_path: Path) -> None:
    student = ["--student", str(place / "student"), "--steps", "1", "--metrics", "fid", "--dtype", "autocast"]
    assert evaluate(place, tmp_path, *student) == 0
    assert rows_of(tmp_path)[1]["source"]["dtype"] == "autocast"
    assert "<td>autocast</td>" in (tmp_path / "report.html").read_text()
