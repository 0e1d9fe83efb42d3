import json
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from encoded import save
from eval_place import COUNT, evaluate, place, rows_of, value

from eval.cli import build_parser, to_options
from eval.networks.preprocessing import Resize, explicit_resize
from eval.options import Options

__all__ = ["place"]


def test_seconds_are_taken_at_the_batch_sizes_that_are_asked_for(place: Path, tmp_path: Path) -> None:
    told = ("--student", str(place / "student"), "--steps", "2", "--latency", "1,3")
    assert evaluate(place, tmp_path, *told) == 0
    real, student = rows_of(tmp_path)
    assert real["latency"] == []
    assert [one["batch_size"] for one in student["latency"]] == [1, 3]
    assert all(one["seconds_per_image"] > 0 for one in student["latency"])
    assert student["nfe"] == 2


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
        (["--student", "{place}/student", "--metrics", "fit"], "did you mean fid?"),
        (["--student", "{place}/student", "--assert", "fid"], "'fid' cannot be read"),
        (
            ["--student", "{place}/student", "--assert", "fidd[2] < 5"],
            "names fidd, which is no figure; did you mean fid?",
        ),
        (["--student", "{place}/student", "--assert", "fid[4] < 5"], "measured at 1, 2: write fid[2], or add"),
        (["--student", "{place}/student", "--steps", "1", "--assert", "fid[2] < 5"], "measured at 1: write fid[1]"),
        (["--student", "{place}/real", "--assert", "fid[2] < 5"], "of which it is not known: write fid alone"),
        (["--teacher", "{place}/student", "--assert", "fid < 5"], "give one with --student"),
        (["--student", "{place}/student", "--assert", "clip_score > 5"], "do not measure (see --metrics, --clip"),
        (["--student", "{place}/student", "--metrics", "kid", "--assert", "fid < 5"], "which these options do not"),
        (["--student", "{place}/student", "--assert", "diversity_ratio > 1"], "give one with --teacher"),
        (["--student", "{place}/student", "--assert", "reward_pick > 1"], "names reward_pick, which is no figure"),
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
    monkeypatch.setattr("fastgen.command.leave", sys.exit)  # which would end this process some seconds later
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("eval", run_name="__main__")
    assert caught.value.code == 2
    assert "nothing to measure" in capsys.readouterr().err


def test_a_device_that_does_not_exist_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["--student", "out/student", "--device", "abacus"])
    assert "'abacus' is not auto, cpu, cuda" in capsys.readouterr().err


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
    assert set(vars(args)) == {"reference", "extractor", "stack", "debug"}, "their defaults stand in Options alone"
    asked = [
        "--extractor-range",
        "-1",
        "1",
        "--reward",
        "a=b",
        "--reward",
        "c=d",
        "--steps",
        "1,4",
        "--dtype",
        "autocast",
    ]
    told = to_options(build_parser().parse_args(["--reference", "r", *asked]))
    assert (told.extractor_range, told.rewards, told.steps) == ((-1.0, 1.0), ("a=b", "c=d"), (1, 4))
    assert told.dtype == "autocast"


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


def test_chosen_metrics_are_measured_and_no_others(place: Path, tmp_path: Path) -> None:
    student = ["--student", str(place / "student"), "--steps", "1"]
    assert evaluate(place, tmp_path, *student, "--metrics", "vendi,inception_score,fid_infinity") == 0
    (_, row) = rows_of(tmp_path)
    assert list(row["metrics"]) == ["fid_infinity", "inception_score", "vendi"]
    catalogue = json.loads((tmp_path / "metrics.json").read_text())["figures"]
    assert catalogue["vendi"]["better"] == "higher"
    assert "1911.07023" in catalogue["fid_infinity"]["paper"]


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
    shown = json.loads((tmp_path / "out" / "metrics.json").read_text())["gallery"]["images"]["real"]
    assert [path and Path(path).stem for path in shown[4:7]] == ["4", None, "6"]
    assert "could not be used" in (tmp_path / "out" / "report.html").read_text()
    assert "skipped 1 images" in capsys.readouterr().out
    short = ["--held-out", str(tmp_path / "real"), "--num", "30", "--skip-bad", "--overwrite"]
    assert evaluate(place, tmp_path / "out", *short) == 2
    assert "only 29 images" in capsys.readouterr().err


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
