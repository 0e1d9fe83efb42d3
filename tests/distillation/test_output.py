"""Where a run, or the runs of several students, may write: what others left is refused and stays."""

from pathlib import Path

import pytest

from fastgen.config.schema import Config
from fastgen.config.yaml_file import load
from fastgen.distillation.output import check_output, check_outputs
from fastgen.distillation.several import runs_of
from fastgen.errors import UserError
from fastgen.models.pipelines.students import Students


def config(folder: Path, **changes) -> Config:
    return load(
        {
            "out": str(folder / "out"),
            "teacher": {"path": str(folder / "teacher")},
            "student": {"steps": [1]},
            "data": {"source": "noise", "num_classes": 10},
            "objective": {"name": "dmd2", "gan": 0, "ratio": 1},
            "train": {"images": 8, "batch": 4},
            **changes,
        }
    )


def write(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("{}")


def test_a_run_goes_on_over_what_it_exported_and_over_nothing_else(tmp_path):
    run = config(tmp_path)
    check_output(run, resume=False)
    write(run.exported / "fastgen.json")
    for resume, said in ((False, r"fastgen.json: give"), (True, r"fastgen.json, and no checkpoint is left: give")):
        with pytest.raises(UserError, match=f"student, which already holds {said} another folder"):
            check_output(run, resume=resume)
    write(run.out / "checkpoints/1/state.json")
    check_output(run, resume=True)
    with pytest.raises(UserError, match=r"already holds a run: go on with it by --resume, or give another"):
        check_output(run, resume=False)
    (run.exported / "fastgen.json").rename(run.exported / "thesis.txt")
    with pytest.raises(UserError, match=r"already holds thesis\.txt"):
        check_output(run, resume=True)


def test_the_lora_beside_a_student_is_looked_at_too(tmp_path):
    run = config(tmp_path, sharing="lora")
    write(run.exported_lora / "thesis.txt")
    with pytest.raises(UserError, match=r"student-lora, which already holds thesis\.txt"):
        check_output(run, resume=False)
    check_output(config(tmp_path), resume=False)


def test_an_export_takes_the_place_of_no_folder_that_is_needed(tmp_path):
    for place in ("teacher", "out", "."):
        with pytest.raises(UserError, match="the export would replace"):
            check_output(config(tmp_path, export=str(tmp_path / place)), resume=False)


def test_several_students_stand_beside_each_other_and_nothing_else(tmp_path):
    several = config(tmp_path, students=2)
    runs = runs_of(several)
    (several.exported / "0").mkdir(parents=True)
    (several.exported / ".1.host.1.1.tmp").mkdir()
    check_outputs(several, runs)  # what a run that was stopped leaves
    write(several.exported / "README.md")
    with pytest.raises(UserError, match=r"out/student, which already holds README.md: give another"):
        check_outputs(several, runs)
    assert (several.exported / "README.md").is_file()
    Students(("0", "1"), classes=((0,), (1,))).write(several.exported)
    check_outputs(several, runs)
    (several.out / "checkpoints").mkdir()
    with pytest.raises(UserError, match="already holds a run, of one student"):
        check_outputs(several, runs)
