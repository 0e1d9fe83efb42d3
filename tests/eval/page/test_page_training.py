"""The run that left a student is found beside it or beside the report, and its curves are on the page."""

from pathlib import Path

import pytest
from dom import section, words
from made_up_run import write_run
from shown_report import Data, busy, shown

from eval.rows import Origin, Row
from eval.training import training_of


def row(path: str, role: str = "student") -> Row:
    return Row(role, role, role, Origin(path, "pipeline"), num=4, metrics={}, not_measured={}, steps=1)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_a_student_that_lies_in_its_run_is_known(run, tmp_path):
    found = training_of([row(str(run / "student"))], tmp_path / "report")
    assert found is not None
    assert (found.path, found.stages) == ("run", (800.0,))
    series = {one.name: one.points for one in found.series}
    assert series["generator/dm"][0] == (40.0, 1.0)
    assert series["generator/dm"][-1][0] == 1600
    assert "quality/frechet" in series


def test_so_is_a_report_in_the_runs_folder(run):
    assert training_of([row("digits student")], run / "report") is not None


def test_another_student_or_a_teacher_has_no_run(run, tmp_path):
    assert training_of([row(str(tmp_path / "elsewhere/student"))], tmp_path / "report") is None
    assert training_of([row(str(run / "student"), "teacher")], tmp_path / "report") is None


def test_the_page_has_its_curves(tmp_path: Path, folder: Path, data: Data):
    told = words(section(shown(folder, busy(data)), "training"))
    for title in ("Run mine", "fid of few samples", "losses of generator", "dm 0.25"):
        assert title in told
