import json
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tiny
import torch
from encoded import encoded, noise_image, pixels_of, save
from PIL import Image
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from eval.blocks import pooled
from eval.cli import build_parser, to_options
from eval.costs import Costs
from eval.figure import Figure
from eval.options import Options
from eval.preprocessing import Resize, explicit_resize
from eval.report import Row
from eval.sources import Origin
from eval.statistics_file import load_statistics
from fastgen.cli import main
from fastgen.models import loading
from fastgen.notes import Notes
from fastgen.sampling import stock

COUNT = 24
EXTRACTOR_OPTIONS = ["--extractor-size", "16", "--extractor-range", "-1", "1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """student/ and teacher/ (16 px, ten classes), real/ and labelled.parquet, extractor/ of ten classes."""
    folder = tmp_path_factory.mktemp("eval")
    for seed, name in enumerate(("student", "teacher")):
        tiny.class_conditional(size=16, seed=seed).save_pretrained(folder / name)
    Notes(steps=(1, 2), num_classes=10, null_label=10).write(folder / "student")
    contents = [encoded(noise_image(seed, 16, 16)) for seed in range(30)]
    for seed, content in enumerate(contents):
        save(folder / "real" / f"{seed:02d}.png", content)
    columns = {"image": contents, "label": [seed % 10 for seed in range(30)]}
    parquet.write_table(pa.table(columns), folder / "labelled.parquet")
    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", id2label=dict(enumerate("abcdefghij"))
    )
    ResNetForImageClassification(config).save_pretrained(folder / "extractor")
    save(folder / "words.txt", "cat\n")
    return folder


def evaluate(place: Path, out: Path, *options: str, reference: str = "real") -> int:
    paths = ["--reference", str(place / reference), "--extractor", str(place / "extractor"), "--out", str(out)]
    return main(["eval", *paths, *EXTRACTOR_OPTIONS, "--num", str(COUNT), "--batch-size", "10", *options])


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "metrics.json").read_text())["rows"]


def test_student_and_teacher_side_by_side(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["--student", str(place / "student"), "--teacher", str(place / "teacher"), "--teacher-steps", "3"]
    assert evaluate(place, tmp_path, *sides, "--seed", "5", reference="labelled.parquet") == 0
    rows = rows_of(tmp_path)
    generated = rows[1:]
    assert [row["id"] for row in rows] == ["real", "teacher-3", "teacher-1", "teacher-2", "student-1", "student-2"]
    assert [row["steps"] for row in generated] == [row["nfe"] for row in generated] == [3, 1, 2, 1, 2]
    assert [row["num"] for row in rows] == [30] + [COUNT] * 5
    assert {row["source"]["first_seed"] for row in generated} == {5}
    assert all(row["costs"]["seconds_per_image"] > 0 and row["source"]["dtype"] == "float32" for row in generated)
    assert [band["low"] for band in generated[0]["spectrum"]["bands"]] == [1, 2, 4, 6, 8]
    assert all(0 <= row["metrics"]["accuracy"]["value"] <= 1 for row in rows)
    assert "fid" not in rows[0]["metrics"]
    assert "diversity_ratio" not in generated[0]["metrics"]
    for row in generated[1:]:
        ratio = value(row, "diversity") / value(generated[0], "diversity")
        assert value(row, "diversity_ratio") == pytest.approx(ratio)
    assert [entry["num"] for entry in generated[0]["per_class"]] == [3] * 4 + [2] * 6
    printed = capsys.readouterr().out
    for row in generated:
        assert f"{value(row, 'fid'):.4g}" in printed
    assert "pooled 8" in printed
    assert "seeds      5 to 28" in printed


def value(row: dict, name: str) -> float:
    return row["metrics"][name]["value"]


def test_the_figures_are_those_of_the_sampled_images(place: Path, tmp_path: Path) -> None:
    drawing = ["--steps", "2", "--seed", "3", "--batch-size", "7"]
    assert evaluate(place, tmp_path, "--student", str(place / "student"), *drawing) == 0
    (_, student) = rows_of(tmp_path)
    pipe = loading.load(place / "student", device="cpu")
    labels = [i % 10 for i in range(COUNT)]
    drawn = torch.cat(list(stock.generate(pipe, seeds=range(3, 3 + COUNT), steps=2, labels=labels)))
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
    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            time.sleep(0.01)
            yield torch.zeros(2, 1)

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


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "nothing to measure"),
        (["--student", "{place}/none"], "no pipeline folder"),
        (["--student", "{place}/real", "--num", "31"], "has 30 images, but every row of the report needs 31"),
        (["--student", "{place}/student", "--num", "7"], "7 images are too few for the protocol domain, which takes 8"),
        (["--student", "{place}/student", "--reference", "{place}/none"], "none does not exist"),
        (["--student", "{place}/student", "--reference", "{place}/none.npz"], "none.npz does not exist"),
        (["--student", "{place}/student", "--extractor", "{place}/student"], "has no config.json"),
        (["--student", "{place}/student", "--extractor-mean", "0", "0", "0"], "preprocessing needs"),
        (["--student", "{place}/student", "--extractor-range", "1", "-1"], "is empty"),
        (["--student", "{place}/student", "--device", "abacus"], "no device 'abacus'"),
        (["--student", "{place}/student", "--metrics", "fit"], "did you mean fid?"),
        (["--student", "{place}/student", "--assert", "fid"], "'fid' cannot be read"),
        (["--student", "{place}/student", "--reward", "pick"], "must be NAME=FOLDER"),
        (["--student", "{place}/student", "--protocol", "clean"], "fixes how images are made"),
        (["--student", "{place}/student", "--clip", "{place}/none"], "no model folder"),
        (["--student", "{place}/student", "--lpips", "{place}/none"], "give its path with --lpips"),
        (["--student", "{place}/student", "--labels", "{place}/words.txt"], "one class number per line"),
        (["--student", "{place}/student", "--prompts", "{place}/none.txt"], "none.txt cannot be read"),
        (["--student", "{place}/student", "--real-images", "{place}/real"], "leave --real-images out"),
        (["--reference", "{place}/none.npz", "--save-stats", "{place}/b.npz"], "is such a file already"),
    ],
)
def test_mistakes_cost_one_paragraph(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    assert evaluate(place, tmp_path, *(option.format(place=place) for option in options)) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert told.startswith("fastgen: error: ")
    assert problem in told
    assert not list(tmp_path.iterdir())


def test_small_sets_are_allowed_on_request_and_marked(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(place, tmp_path, "--student", str(place / "student"), "--num", "5", "--allow-small") == 0
    assert "N = 5 is below 8: FID is mostly bias" in capsys.readouterr().out


def test_earlier_results_are_kept_unless_overwritten(place: Path, tmp_path: Path) -> None:
    sides = ["--student", str(place / "real"), "--save-stats", str(tmp_path / "s.npz")]
    assert evaluate(place, tmp_path / "out", *sides) == 0
    old = (tmp_path / "out" / "metrics.json").read_bytes()
    assert evaluate(place, tmp_path / "out", "--student", str(place / "real"), "--seed", "1") == 2
    assert (tmp_path / "out" / "metrics.json").read_bytes() == old
    assert evaluate(place, tmp_path / "new", *sides) == 2
    assert evaluate(place, tmp_path / "out", *sides, "--seed", "1", "--overwrite") == 0
    assert (tmp_path / "out" / "metrics.json").read_bytes() != old


def test_foreign_statistics_are_used_with_a_warning(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "foreign.npz", mu=np.zeros(8), sigma=np.eye(8))
    np.savez(tmp_path / "wide.npz", mu=np.zeros(9), sigma=np.eye(9))
    student = ["--student", str(place / "real")]
    assert evaluate(place, tmp_path / "out", *student, reference=str(tmp_path / "foreign.npz")) == 0
    assert "does not name its extractor" in capsys.readouterr().out
    assert evaluate(place, tmp_path / "wide", *student, reference=str(tmp_path / "wide.npz")) == 2
    assert "9 feature dimensions cannot be compared with 8" in capsys.readouterr().err


def test_statistics_of_another_preprocessing_are_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(place, tmp_path, "--save-stats", str(tmp_path / "s.npz")) == 0
    student = ["--student", str(place / "student"), "--extractor-size", "20"]
    assert evaluate(place, tmp_path, *student, reference=str(tmp_path / "s.npz")) == 2
    assert "weights, preprocessing and feature must agree" in capsys.readouterr().err


def test_python_m_eval_is_the_same_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["eval", "--reference", "none", "--extractor", "none"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("eval", run_name="__main__")
    assert caught.value.code == 2
    assert "nothing to measure" in capsys.readouterr().err


def test_help_teaches_without_loading_torch() -> None:
    script = (
        "import sys; from eval.cli import build_parser\n"
        "print(build_parser().format_help())\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "python -m eval --student out/student --steps 1,4" in done.stdout
    assert done.stdout.strip().endswith("False")


def test_options_of_the_parser_are_the_fields_of_options() -> None:
    args = build_parser().parse_args(["--reference", "r", "--extractor", "e"])
    assert to_options(args) == Options(reference=Path("r"), extractor="e")


@pytest.mark.parametrize("text", ["", "0", "1,", "two", "-1"])
def test_step_lists_are_checked(text: str) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--reference", "r", "--extractor", "e", f"--steps={text}"])


def test_preprocessing_is_spelled_out_once() -> None:
    def resize(**settings: object) -> Resize | None:
        return explicit_resize(Options(reference=Path("r"), extractor="e", **settings))

    assert resize() is None
    unit = resize(extractor_size=8, extractor_range=(0, 1))
    assert unit == resize(extractor_size=8, extractor_mean=(0,) * 3, extractor_std=(1,) * 3)


def test_assertions_decide_the_exit_code(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student = ["--student", str(place / "student"), "--metrics", "fid", "--overwrite"]
    assert evaluate(place, tmp_path, *student, "--assert", "fid[1] >= 0", "--assert", "nfe <= 2") == 0
    assert evaluate(place, tmp_path, *student, "--assert", "fid[1] < 1e9", "--assert", "fid[2] < 0") == 1
    first, second = json.loads((tmp_path / "metrics.json").read_text())["assertions"]
    (_, _, row) = rows_of(tmp_path)
    assert (first["holds"], second["holds"]) == (True, False)
    assert second["measured"] == [{"row": "student-2", "value": value(row, "fid")}]
    assert f"FAILS  fid[2] < 0   (student-2: {value(row, 'fid'):.6g})" in capsys.readouterr().out
    assert evaluate(place, tmp_path, *student, "--assert", "fid[3] > 0") == 1


def test_chosen_metrics_are_measured_and_no_others(place: Path, tmp_path: Path) -> None:
    student = ["--student", str(place / "student"), "--steps", "1"]
    assert evaluate(place, tmp_path, *student, "--metrics", "vendi,inception_score,fid_infinity") == 0
    (_, row) = rows_of(tmp_path)
    assert list(row["metrics"]) == ["fid_infinity", "inception_score", "vendi"]
    catalogue = json.loads((tmp_path / "metrics.json").read_text())["figures"]
    assert catalogue["vendi"]["better"] == "higher"
    assert "1911.07023" in catalogue["fid_infinity"]["paper"]


def test_pictures_of_the_same_seeds_stand_beside_the_report(place: Path, tmp_path: Path) -> None:
    sides = ["--student", str(place / "student"), "--teacher", str(place / "teacher"), "--teacher-steps", "3"]
    options = ["--steps", "2", "--gallery", "4", "--seed", "7", "--metrics", "fid"]
    assert evaluate(place, tmp_path, *sides, *options, reference="labelled.parquet") == 0
    gallery = json.loads((tmp_path / "metrics.json").read_text())["gallery"]
    assert [item["seed"] for item in gallery["items"]] == [7, 8, 9, 10]
    assert [(item["label"], item["class_name"]) for item in gallery["items"][:2]] == [(0, "a"), (1, "b")]
    assert list(gallery["images"]) == ["real", "teacher-3", "teacher-2", "student-2"]
    pipe = loading.load(place / "student", device="cpu")
    drawn = torch.cat(list(stock.generate(pipe, seeds=range(7, 11), steps=2, labels=range(4))))
    for path, expected in zip(gallery["images"]["student-2"], drawn, strict=True):
        assert torch.equal(pixels_of(Image.open(tmp_path / path)), (expected * 255).round().to(torch.uint8))
    strip = gallery["strip"]
    assert (strip["label"], strip["seeds"]) == (0, list(range(7, 15)))
    assert strip["images"]["student-2"][0] == "images/student-2/strip-7.png"
    same, other = (pixels_of(Image.open(tmp_path / path)) for path in strip["images"]["student-2"][:2])
    assert torch.equal(same, pixels_of(Image.open(tmp_path / gallery["images"]["student-2"][0])))
    (again,) = stock.generate(pipe, seeds=[8], steps=2, labels=[0])
    assert torch.equal(other, (again[0] * 255).round().to(torch.uint8))
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


def test_bad_images_are_refused_or_counted(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "real", tmp_path / "real")
    save(tmp_path / "real" / "05.png", b"")
    student = ["--held-out", str(place / "real"), "--reference", str(tmp_path / "real")]
    assert evaluate(place, tmp_path / "out", *student) == 2
    assert "05.png cannot be read (0 bytes" in capsys.readouterr().err
    assert evaluate(place, tmp_path / "out", *student, "--skip-bad") == 0
    (real, _) = rows_of(tmp_path / "out")
    assert real["num"] == 29
    assert [Path(skip["name"]).name for skip in real["skipped"]] == ["05.png"]
    assert "skipped 1 images" in capsys.readouterr().out
    short = ["--held-out", str(tmp_path / "real"), "--num", "30", "--skip-bad", "--overwrite"]
    assert evaluate(place, tmp_path / "out", *short) == 2
    assert "Only 29 images" in capsys.readouterr().err


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
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "eval"]
    done = subprocess.run(
        [*launch, *arguments, "--out", str(tmp_path / "two")], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
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


def test_blocks_of_seeds_give_mean_spread_and_every_value(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = ["--student", str(place / "student"), "--steps", "1", "--metrics", "fid,accuracy"]
    for block in range(3):
        assert evaluate(place, tmp_path / str(block), *student, "--seed", str(5 + COUNT * block)) == 0
    alone = [value(rows_of(tmp_path / str(block))[1], "fid") for block in range(3)]
    capsys.readouterr()
    teacher = ["--teacher", str(place / "real")]
    mean, spread = float(np.mean(alone)), float(np.std(alone, ddof=1))
    bounds = ["--assert", f"fid > {mean - 1e-4 * mean}", "--assert", f"fid < {mean + 1e-4 * mean}"]
    assert evaluate(place, tmp_path / "three", *student, *teacher, "--seed", "5", "--seeds", "3", *bounds) == 0
    (_, files, row) = rows_of(tmp_path / "three")
    found = row["metrics"]["fid"]
    assert found["values"] == pytest.approx(alone, rel=1e-6)
    assert (found["value"], found["spread"]) == pytest.approx((mean, spread), rel=1e-6)
    assert found["low"] < mean < found["high"]
    assert (row["num"], row["nfe"], row["source"]["first_seed"]) == (COUNT, 1, 5)
    assert row["costs"]["images_per_second"] == pytest.approx(1 / row["costs"]["seconds_per_image"])
    assert (files["metrics"]["fid"]["values"], files["metrics"]["fid"]["spread"]) == ([], None)
    assert json.loads((tmp_path / "three" / "metrics.json").read_text())["provenance"]["seeds"] == [5, 76]
    printed = capsys.readouterr().out
    assert f"{mean:.4g} sd {spread:.2g}" in printed
    for block, single in enumerate(alone):
        assert f"{single:.4g}" in next(
            line for line in printed.splitlines() if f"from seed {5 + COUNT * block}" in line
        )


def test_a_figure_that_one_block_lacks_is_not_measured() -> None:
    def block(**figures: Figure) -> Row:
        missing = {} if "kid" in figures else {"kid": "why"}
        return Row("s", "student", "s", Origin("s", "pipeline"), 9, figures, missing)

    row = pooled([block(fid=Figure(1, 0, 2), kid=Figure(3)), block(fid=Figure(2, 1, 5))])
    assert row.figures == {"fid": Figure(1.5, 0.5, 3.5, spread=0.5**0.5, values=(1, 2))}
    assert row.not_measured == {"kid": "why"}


def test_the_report_ends_with_a_page(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(place, tmp_path, "--student", str(place / "student"), "--metrics", "fid", "--steps", "2") == 0
    fid = value(rows_of(tmp_path)[1], "fid")
    assert f"FID {fid:.4g}" in (tmp_path / "report.html").read_text()
    assert f"the report is in {tmp_path / 'report.html'}" in capsys.readouterr().out


def test_the_frechet_distance_stands_first(place: Path, tmp_path: Path) -> None:
    student = ["--student", str(place / "student"), "--steps", "1"]
    assert evaluate(place, tmp_path, *student, reference="labelled.parquet") == 0
    assert "accuracy" in rows_of(tmp_path)[0]["metrics"]
    assert list(json.loads((tmp_path / "metrics.json").read_text())["figures"])[:2] == ["fid", "kid"]
    assert rows_of(tmp_path)[1]["spectrum"]["side"] == 16
