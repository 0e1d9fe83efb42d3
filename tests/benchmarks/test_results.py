"""What is made of benchmarks' files: a table, a plot, a gate; and that sampling and evaluation write such files."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import compare, compile, evaluation, loader, sampling, table
from benchmarks.figures import Result, noise_of

STEP: dict[str, Any] = {
    "benchmark": "step",
    "machine": {"device": "card", "card": "card", "torch": "2", "diffusers": "0", "commit": "abc", "seed": 0},
    "size": "sdxl",
    "setting": {"batch": 4, "gan": False},
    "parameters": 10,
    "seconds": {"generator": 1.0, "cycle": 4.0, "repeats": [3.9, 4.0, 4.1]},
    "images_per_second": 5.0,
    "peak_gib": 12.0,
}


def file(folder: Path, name: str, **changed: Any) -> Path:
    found = folder / f"{name}.json"
    found.write_text(json.dumps({**deepcopy(STEP), **changed}))
    return found


def test_figures_are_numbers_by_dotted_name(tmp_path):
    result = Result.read(file(tmp_path, "a"))
    assert set(result.figures) == {"seconds.generator", "seconds.cycle", "images_per_second", "peak_gib"}
    assert result.figures["seconds.cycle"].noise == pytest.approx(noise_of([3.9, 4.0, 4.1]))
    assert result.figures["peak_gib"].noise == 0
    assert result.setting == {"size": "sdxl", "batch": 4, "gan": False}


@pytest.mark.parametrize(
    ("changed", "code", "worse"),
    [
        ({}, 0, ()),
        ({"images_per_second": 4.0}, 1, ("images_per_second",)),
        ({"images_per_second": 6.0}, 0, ()),
        ({"peak_gib": 13.0}, 1, ("peak_gib",)),
        ({"peak_gib": 11.0}, 0, ()),
        ({"seconds": {"generator": 1.0, "cycle": 4.5, "repeats": [4.5, 4.5, 4.5]}}, 1, ("seconds.cycle",)),
        ({"seconds": {"generator": 1.0, "cycle": 4.5, "repeats": [3.0, 4.5, 6.0]}}, 0, ()),
        ({"setting": {"batch": 8, "gan": False}}, 2, ()),
        ({"machine": {**STEP["machine"], "card": "other"}}, 2, ()),
    ],
    ids=[
        "same",
        "fewer images",
        "more",
        "more memory",
        "less",
        "slower",
        "within noise",
        "other setting",
        "other card",
    ],
)
def test_the_gate_is_for_what_is_worse_beyond_share_and_noise(tmp_path, capsys, changed, code, worse):
    old, new = file(tmp_path, "old"), file(tmp_path, "new", **changed)
    assert compare.main([str(old), str(new)]) == code
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line.split()[0] for line in lines if line.endswith("worse")) == worse


def test_a_table_says_where_its_rows_are_from_and_in_what_they_differ(tmp_path, capsys):
    files = [file(tmp_path, "a"), file(tmp_path, "b", setting={"batch": 4, "gan": True}, images_per_second=3.0)]
    picture = tmp_path / "plot.png"
    table.main([*map(str, files), "--columns", "images_per_second", "peak_gib", "--plot", str(picture)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["### step", "", "card, torch 2, Diffusers 0, commit abc."]
    assert lines[4:] == [
        "| what | images_per_second | peak_gib |",
        "|---|---|---|",
        "| gan False | 5 | 12 |",
        "| gan True | 3 | 12 |",
        "",
    ]
    with Image.open(picture) as drawn:
        blue = [sum(drawn.getpixel((x, 26 * row + 10)) == (66, 105, 208) for x in range(drawn.width)) for row in (1, 2)]
    assert blue[1] / blue[0] == pytest.approx(3 / 5, abs=0.01)


def test_a_student_is_timed_beside_its_teacher(tmp_path):
    out = tmp_path / "sampling.json"
    small = ("--model", "tiny", "--size", "64", "--dtype", "float32", "--repeats", "1", "--warmup", "1")
    found = sampling.main([*small, "--steps", "1", "--teacher-steps", "4", "--device", "cpu", "--out", str(out)])
    assert found["student"]["1"]["seconds"] < found["teacher"]["4"]["seconds"]
    assert found["times_as_fast"]["1"] > 1
    assert Result.read(out).figures["student.1.seconds"].value == found["student"]["1"]["seconds"]


def test_the_stages_of_an_evaluation_are_timed():
    small = ("--network", "tiny", "--network-side", "32", "--side", "16", "--batch", "8", "--workers", "1")
    found = evaluation.main([*small, "--images", "20", "--device", "cpu"])
    assert set(found["images_per_second"]) == {"decode", "network", "moments", "eval"}
    assert min(found["images_per_second"].values()) > 0


def test_images_are_read_from_every_storage_and_waited_for(monkeypatch):
    monkeypatch.setenv("FASTGEN_CACHE", "")
    small = ("--images", "40", "--side", "16", "--batch", "8", "--workers", "0", "--step", "0.01", "--measured", "0.05")
    found = loader.main(small)
    assert set(found["figures"]) == {"folder", "tar", "parquet"}
    assert all(figures["workers_0"]["images_per_second"] > 0 for figures in found["figures"].values())
    assert all(figures["workers_0"]["waited_of_a_step"] > 0 for figures in found["figures"].values())


@pytest.mark.slow
def test_a_first_cycle_is_timed_with_and_without_a_cache():
    tiny = ("--size", "tiny", "--device", "cpu", "--precision", "fp32", "--rank", "1", "--batch", "2")
    found = compile.main(["--eager", *tiny, "--cycles", "1", "--warmup", "1", "--fake-turns", "1"])
    assert found["cold"]["first_cycle_seconds"] > 0 < found["kept cache"]["cycle_seconds"]
