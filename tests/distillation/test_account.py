"""What a run says before and after, and the pictures that it leaves: of whole small runs."""

import json
from pathlib import Path

import pytest
import small_run
import tiny
from PIL import Image

from fastgen.config.schema import Config
from fastgen.distillation.account import closing
from fastgen.distillation.distil import distil
from fastgen.distillation.previews import guidance_of

pytestmark = pytest.mark.usefixtures("few_previews")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    return folder


def config(folder: Path, out: Path, **changes) -> Config:
    train = {"images": 4, "batch": 2}
    settings = {
        "out": out,
        "stages": [{"objective": {"name": "dmd2", "ratio": 1, "gan": 0, "guidance": 1.5}, "train": train}],
        "student": {"steps": [1]},
        "log": {"every": 1, "previews": 1, "trackers": []},
        "evaluate": {"teacher_steps": 2},
    }
    return small_run.run_config(folder, **{**settings, **changes})


@pytest.fixture(scope="module")
def ran(teacher, tmp_path_factory):
    """A run, and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        from isolated import HERE

        patch.setattr("fastgen.export.verify.subprocess", HERE)
        patch.setattr("fastgen.distillation.previews.PREVIEW_IMAGES", 4)
        said: list[str] = []
        patch.setattr("fastgen.engine.log.RunLog.say", lambda _, text: said.append(text))
        made = config(teacher, tmp_path_factory.mktemp("run") / "out")
        distil(made, recipes=teacher)
    return made, said


def test_a_run_begins_with_what_is_done_with_what(ran):
    made, said = ran
    header = said[0]
    for told in ("teacher ", "ConsistencyModelPipeline", "1 step, renoise", "cpu", "fp32", "planned", "MiB of"):
        assert told in header
    assert "dmd2: 4 images in 2 cycles of 2" in header
    about = json.loads((made.out / "run.json").read_text())
    assert about["header"]["stage 1/1"] == "dmd2: 4 images in 2 cycles of 2"
    assert about["started"] <= about["finished"]


def test_it_ends_with_where_the_student_is_and_three_commands(ran):
    made, said = ran
    left = said[-1]
    assert left.startswith("done\n")
    assert f"{made.exported} (1 step)" in left
    assert "dmd2 4 images in" in left
    commands = closing(made).commands
    assert [command.split()[1] for command in commands] == ["sample", "eval", "watch"]
    assert all(command in left for command in commands)
    assert "--reference IMAGES --extractor MODEL" in commands[1]
    digits = made.model_copy(update={"evaluate": made.evaluate.model_copy(update={"protocol": "digits"})})
    assert "--protocol digits --num-images 1797" in closing(digits).commands[1]


def test_figures_stand_beside_the_teachers_where_a_report_has_them(ran):
    made, _ = ran
    rows = [("real", "held out", 0.1), ("teacher", "teacher, 25 steps", 0.2), ("student", "student after dmd2", 0.3)]
    report = made.out / "report"
    report.mkdir()
    written = [{"role": r, "title": t, "metrics": {"frechet": {"value": v}}} for r, t, v in rows]
    (report / "metrics.json").write_text(json.dumps({"rows": written}))
    lines = closing(made).lines
    assert lines["teacher, 25 steps"] == "frechet 0.2"
    assert lines["student after dmd2"] == "frechet 0.3"
    assert "held out" not in lines


def test_pictures_have_captions_and_stand_beside_the_teachers_of_the_same_seeds(ran):
    made, _ = ran
    records = {file.stem: json.loads(file.read_text()) for file in (made.out / "previews").glob("*.json")}
    teacher, student = records.pop("teacher"), records.pop("0-dmd2-000000004")
    assert not records
    assert teacher["what"] == "teacher, 2 steps, guidance 1.5"
    assert student["what"] == "student, 1 step"
    assert teacher["captions"] == student["captions"] == ["class 0", "class 1", "class 2", "class 3"]
    assert teacher["seeds"] == student["seeds"] == [0, 1, 2, 3]
    assert set(student["health"]) == {"std", "spread", "saturated"}
    sizes = {Image.open(made.out / "previews" / f"{name}.png").size for name in ("teacher", "0-dmd2-000000004")}
    assert len(sizes) == 1


def test_what_the_scores_believe_is_shown_in_rows(ran):
    made, _ = ran
    with Image.open(made.out / "beliefs" / "0-dmd2-000000004.png") as panel:
        assert panel.height >= 3 * 64
    assert json.loads((made.out / "previews/0-dmd2-000000004.json").read_text())["beliefs"] == "0-dmd2-000000004.png"


def test_the_teacher_is_shown_as_the_student_learns_it_or_as_it_is_measured(ran, teacher, tmp_path):
    assert guidance_of(ran[0]) == 1.5
    measured = config(teacher, tmp_path, evaluate={"teacher_guidance": 3.0})
    assert guidance_of(measured) == 3.0


def test_a_teacher_that_cannot_be_drawn_is_a_warning(verified_here, teacher, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no sampler")

    monkeypatch.setattr("fastgen.distillation.student.Student.sample_teacher", fail)
    warned: list[str] = []
    monkeypatch.setattr("fastgen.distillation.previews.warn", warned.append)
    distil(config(teacher, tmp_path / "out"), recipes=teacher)
    assert warned == [
        "the teacher's samples could not be drawn beside the student's (RuntimeError: no sampler); training goes on"
    ]
    assert not (tmp_path / "out/previews/teacher.png").exists()
    assert (tmp_path / "out/student/model_index.json").exists()
