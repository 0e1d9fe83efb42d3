"""The page of a run: read from files that may be torn or hostile, drawn as curves, nothing of them becomes code."""

import base64
import json
import os
from io import BytesIO
from pathlib import Path

import pytest
from dom import having, of_class, parse, section, shape, words
from made_up_report import HOSTILE
from made_up_run import COUNT, SIZE, colour, hold, write_run
from PIL import Image

from eval.watch.curves import MOST_POINTS, Curves
from eval.watch.files import Entry, RunFiles
from eval.watch.page import page
from fastgen.errors import UserError
from fastgen.lock import held


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def shown(folder: Path, **settings):
    return parse(page(RunFiles.read(folder), **{"token": "t", "asked": False, **settings}))


def test_a_folder_without_a_run_is_refused_with_what_it_lacks(tmp_path):
    with pytest.raises(UserError, match=r"is not the folder of a run: it has neither log.jsonl nor config.yaml"):
        RunFiles.read(tmp_path)


def test_of_the_runs_of_several_students_one_is_named(tmp_path):
    write_run(tmp_path / "0")
    with pytest.raises(UserError, match=rf"several students: give one of them, as {tmp_path / '0'}"):
        RunFiles.read(tmp_path)


def test_a_run_is_running_finished_or_stopped(folder, tmp_path):
    assert RunFiles.read(folder).state == "stopped"
    with held({folder: folder / ".lock"}):
        run = RunFiles.read(folder)
        assert run.state == "running"
        assert run.holder is not None
        assert run.holder.pid == os.getpid()
    assert RunFiles.read(write_run(tmp_path / "over", finished=True)).state == "finished"


@pytest.mark.parametrize("pid", [os.getpid(), 2**22 - 1, -1, "1", [1]], ids=["ours", "over", "all", "text", "list"])
def test_a_lock_that_a_process_does_not_have_open_is_nobodys(folder, pid):
    hold(folder, pid=pid)
    assert RunFiles.read(folder).state == "stopped"


def test_pictures_are_cut_from_their_grid_with_their_captions(folder):
    run = RunFiles.read(folder)
    kd, dmd2 = run.previews(most=6)
    assert (kd.stage, kd.images, dmd2.stage, dmd2.images) == ("kd", 800, "dmd2", 400)
    assert dmd2.captions == ("class 0", "class 1", "class 2", "class 3")
    for place, one in enumerate(dmd2.pictures):
        picture = Image.open(BytesIO(base64.b64decode(one.uri.partition(",")[2])))
        assert picture.size == (SIZE, SIZE)
        assert set(picture.convert("RGB").get_flattened_data()) == {colour(place)}
    assert [one.name for one in run.previews(most=1)] == ["1-dmd2-000000400"]


def test_the_page_shows_teacher_beside_student_at_the_same_seeds(folder):
    root = shown(folder)
    (first, *_) = [one for one in root.iter("div") if one.get("data-moment")]
    assert first.get("data-moment") == "1-dmd2-000000400"
    assert [words(one) for one in first.iter("figcaption")] == ["teacher, 25 steps", "student, 1 step"]
    assert len(list(first.iter("img"))) == 2 * COUNT
    assert "std 0.5 (teacher 0.5)" in words(first)


def test_every_role_has_its_curves(folder):
    told = words(shown(folder))
    for title in ("frechet of few samples", "losses of generator", "losses of fake_score", "gradient norms"):
        assert title in told
    assert "images per second" in told
    assert "learning rates" in told


def test_the_second_stage_goes_on_where_the_first_ended():
    log = [Entry(stage, cycle, 10.0 * cycle, {"generator/dm": 1.0}, "") for stage in (0, 1) for cycle in (1, 2)]
    (plot,) = Curves.of(log).losses
    xs = [x for x, _ in plot.curves[0].line.points]
    assert xs == [plot.axes.x(images) for images in (10, 20, 30, 40)]
    assert plot.stages == (plot.axes.x(20),)


def test_a_long_log_is_thinned_to_means_and_keeps_its_last_value():
    log = [Entry(0, cycle, float(cycle), {"generator/dm": float(cycle % 2)}, "") for cycle in range(1, 5002)]
    (plot,) = Curves.of(log).losses
    assert len(plot.curves[0].line.points) == MOST_POINTS + 1
    assert plot.curves[0].last == "1"


@pytest.mark.parametrize("stage", ["-3", "1e999", "null", "true", "9" * 400])
def test_a_line_of_no_stage_is_left_out(folder, stage):
    before = RunFiles.read(folder).log
    with (folder / "log.jsonl").open("a") as log:
        log.write(f'{{"stage": {stage}, "cycle": 1, "images": 4}}\n{{"stage": 0, "cycle": {stage}}}\n[1]\n')
    assert RunFiles.read(folder).log == before
    assert shown(folder)


def test_what_is_torn_damaged_or_not_finite_is_left_out(folder):
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"stage": 1, "cycle": 21, "images": 840, "generator/dm": NaN}\n["a"]\n{"stage": 1, "cyc')
    (folder / "previews" / "1-dmd2-000000400.png").write_bytes(b"no picture")
    (folder / "previews" / "teacher.json").write_text("{")
    run = RunFiles.read(folder)
    assert (run.log[-1].cycle, run.log[-1].figures) == (21, {})
    root = shown(folder)
    assert "teacher, 25 steps" not in words(root)
    assert of_class(root, "div", "duo")


@pytest.mark.parametrize("wide", [10**9, 0, -3, "16", None])
def test_a_record_with_a_foreign_size_shows_no_picture(folder, wide):
    file = folder / "previews" / "1-dmd2-000000400.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"width": wide}))
    assert all(one.pictures == () for one in RunFiles.read(folder).previews(6) if one.stage == "dmd2")


def test_nothing_of_a_run_becomes_an_element_or_an_attribute(folder, tmp_path):
    attacked = write_run(tmp_path / "attacked", words=f" {HOSTILE}")
    for name in ("log.jsonl", "pace.jsonl"):
        lines = [json.loads(line) for line in (attacked / name).read_text().splitlines()]
        renamed = [{key if "/" not in key else f"{key} {HOSTILE}": one for key, one in line.items()} for line in lines]
        (attacked / name).write_text("".join(f"{json.dumps(line)}\n" for line in renamed))
    evil, plain = shown(attacked), shown(folder)
    assert words(evil).count(HOSTILE) > 20
    assert {one.tag for one in evil.iter()} <= {one.tag for one in plain.iter()}
    assert not [key for one in evil.iter() for key in one.attrib if key.startswith("on") or key == "style"]


def test_the_page_loads_nothing_from_elsewhere(folder):
    root = shown(folder)
    assert all(one.startswith("data:image/") for one in having(root, "src"))
    (policy,) = (meta.get("content", "") for meta in root.findall(".//meta[@http-equiv]"))
    assert policy.startswith("default-src 'none'; img-src data:; ")
    assert "'self'" in policy.partition("connect-src")[2]


def test_a_run_that_is_over_says_what_it_left_and_has_no_button(tmp_path):
    root = shown(write_run(tmp_path / "over", finished=True))
    assert "out/student" in words(section(root, "closing"))
    assert not list(root.iter("form"))


def test_a_run_that_has_only_begun_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("out: here\n")
    assert "Nothing is logged yet" in words(shown(tmp_path))
    assert list(shape(shown(tmp_path)))
