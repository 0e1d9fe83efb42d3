import json
import runpy
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
from encoded import encoded, noise_image, save
from torch import Tensor
from transformers import ResNetConfig, ResNetForImageClassification

from eval.checks import explicit_resize
from eval.cli import build_parser
from eval.costs import Costs
from eval.options import Options
from eval.preprocessing import Resize
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
    return folder


def evaluate(place: Path, out: Path, *options: str, reference: str = "real") -> int:
    paths = ["--reference", str(place / reference), "--extractor", str(place / "extractor"), "--out", str(out)]
    return main(["eval", *paths, *EXTRACTOR_OPTIONS, "--num", str(COUNT), "--batch-size", "10", *options])


def rows_of(out: Path) -> list[dict]:
    return json.loads((out / "metrics.json").read_text())["rows"]


def test_student_and_teacher_side_by_side(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sides = ["--student", str(place / "student"), "--teacher", str(place / "teacher"), "--teacher-steps", "3"]
    assert evaluate(place, tmp_path, *sides, "--seed", "5", reference="labelled.parquet") == 0
    real, teacher, first, second = rows_of(tmp_path)
    assert [row["role"] for row in (real, teacher, first, second)] == ["real", "teacher", "student", "student"]
    assert [row["steps"] for row in (teacher, first, second)] == [3, 1, 2]
    assert [row["nfe"] for row in (teacher, first, second)] == [3, 1, 2]
    assert [row["num"] for row in (real, teacher, first)] == [30, COUNT, COUNT]
    assert {row["first_seed"] for row in (teacher, first, second)} == {5}
    assert all(row["seconds_per_image"] > 0 and row["dtype"] == "float32" for row in (teacher, first))
    assert [band["low"] for band in first["bands"]] == [1, 2, 4, 6, 8]
    assert all(0 <= row["accuracy"] <= 1 for row in (real, teacher, first))
    assert real["frechet"] is None
    printed = capsys.readouterr().out
    for row in (teacher, first, second):
        assert f"{row['frechet']:.4g}" in printed
    assert "pooled 8" in printed
    assert "30" in printed.splitlines()[1].split()


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
    assert student["frechet"] == pytest.approx(expected, rel=1e-4)
    assert student["accuracy"] == pytest.approx(float(hits.float().mean()))


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
    assert from_stored["frechet"] == pytest.approx(from_images["frechet"], rel=1e-9)
    assert from_stored["bands"] == from_images["bands"]
    assert evaluate(place, tmp_path / "plain", *student, reference=str(stored)) == 0
    assert rows_of(tmp_path / "plain")[1]["bands"] is None


def test_image_folders_serve_as_student(place: Path, tmp_path: Path) -> None:
    assert evaluate(place, tmp_path, "--student", str(place / "real"), "--num", "30") == 0
    (_, row) = rows_of(tmp_path)
    assert row["frechet"] == pytest.approx(0, abs=1e-9)
    assert [band["db"] for band in row["bands"]] == [0] * 5
    assert (row["steps"], row["nfe"], row["accuracy"], row["nyquist_peak"]) == (None, None, None, 0)


def test_a_text_pipeline_takes_prompts_in_turn_and_guidance_counts_twice(place: Path, tmp_path: Path) -> None:
    tiny.stable_diffusion().save_pretrained(tmp_path / "student")
    prompts = save(tmp_path / "prompts.txt", "a cab\na bed\n")
    sides = ["--student", str(tmp_path / "student"), "--steps", "1", "--guidance", "2"]
    assert evaluate(place, tmp_path / "none", *sides) == 2
    assert evaluate(place, tmp_path / "out", *sides, "--prompts", str(prompts)) == 0
    (_, row) = rows_of(tmp_path / "out")
    assert (row["nfe"], row["guidance"], row["accuracy"]) == (2, 2, None)


def test_time_of_the_consumer_does_not_count() -> None:
    def batches() -> Iterator[Tensor]:
        for _ in range(3):
            time.sleep(0.01)
            yield torch.zeros(2, 1)

    costs = Costs()
    for _ in costs.timing(batches()):
        time.sleep(0.1)
    assert 0.005 <= costs.seconds_per_image < 0.04


def test_classes_of_another_extractor_give_no_accuracy(place: Path, tmp_path: Path) -> None:
    Notes(steps=(1,), num_classes=7, null_label=10).write(tmp_path)
    tiny.class_conditional(size=16).save_pretrained(tmp_path / "seven")
    (tmp_path / Notes.FILE).rename(tmp_path / "seven" / Notes.FILE)
    assert evaluate(place, tmp_path / "out", "--student", str(tmp_path / "seven")) == 0
    assert rows_of(tmp_path / "out")[1]["accuracy"] is None


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([], "nothing to measure"),
        (["--student", "{place}/none"], "no pipeline folder"),
        (["--student", "{place}/real", "--num", "31"], "has 30 images, but every row of the report needs 31"),
        (["--student", "{place}/student", "--num", "7"], "7 images are fewer than the 8 feature dimensions"),
        (["--student", "{place}/student", "--reference", "{place}/none"], "none does not exist"),
        (["--student", "{place}/student", "--reference", "{place}/none.npz"], "none.npz does not exist"),
        (["--student", "{place}/student", "--extractor", "{place}/student"], "has no config.json"),
        (["--student", "{place}/student", "--extractor-mean", "0", "0", "0"], "preprocessing needs"),
        (["--student", "{place}/student", "--extractor-range", "1", "-1"], "is empty"),
        (["--student", "{place}/student", "--device", "abacus"], "no device 'abacus'"),
        (["--student", "{place}/student", "--guidance", "3"], "has no guidance"),
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
    assert "N = 5 is below the 8 feature dimensions" in capsys.readouterr().out


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
    args = vars(build_parser().parse_args(["--reference", "r", "--extractor", "e"]))
    args.pop("debug")
    assert Options(**args) == Options(reference=Path("r"), extractor=Path("e"))


@pytest.mark.parametrize("text", ["", "0", "1,", "two", "-1"])
def test_step_lists_are_checked(text: str) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--reference", "r", "--extractor", "e", f"--steps={text}"])


def test_preprocessing_is_spelled_out_once() -> None:
    def resize(**settings: object) -> Resize | None:
        return explicit_resize(Options(reference=Path("r"), extractor=Path("e"), **settings))

    assert resize() is None
    unit = resize(extractor_size=8, extractor_range=(0, 1))
    assert unit == resize(extractor_size=8, extractor_mean=(0,) * 3, extractor_std=(1,) * 3)
