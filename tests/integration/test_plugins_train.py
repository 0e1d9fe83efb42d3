"""Whole runs by an objective and a source of a user's own, from files and from a package; and how they go on."""

import json
import sys
from pathlib import Path

import plugged
import pytest
import tiny

from fastgen.cli import main

pytestmark = pytest.mark.usefixtures("verified_here", "few_previews")
RUN = """\
out: {here}/run
device: cpu
cache: null
teacher: {{path: {here}/teacher}}
data: {{source: {source}, count: 12}}
objective: {{name: {objective}, loudness: 2}}
train: {{images: 4, batch: 2}}
log: {{every: 1, previews: 0, trackers: []}}
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    tiny.class_conditional(size=16, channels=1).save_pretrained(tmp_path / "teacher")
    return tmp_path


def losses(here: Path) -> set[str]:
    """Names of the figures that the run logged."""
    return {name for line in (here / "run/log.jsonl").read_text().splitlines() for name in json.loads(line)}


def test_files_train_a_student_and_a_changed_one_is_noticed(here: Path, capsys: pytest.CaptureFixture[str]):
    (here / "mine.py").write_text(plugged.OBJECTIVE)
    (here / "squares.py").write_text(plugged.SOURCE)
    config = here / "run.yaml"
    config.write_text(RUN.format(here=here, source="squares.py:Squares", objective="mine.py:Mine"))
    assert main(["train", "--config", str(config)]) == 0
    assert any("loud_" in name for name in losses(here))
    assert (here / "run/student/model_index.json").is_file()
    (here / "mine.py").write_text(plugged.OBJECTIVE.replace("self.loudness *", "2 * self.loudness *"))
    capsys.readouterr()
    assert main(["train", "--config", str(config), "--resume"]) == 3
    told = capsys.readouterr().err
    assert "stages.0.objective.name was mine.py:Mine (sha256 " in told
    assert f"resume with the config saved in {here / 'run/config.yaml'}" in told
    assert main(["train", "--config", str(here / "run/config.yaml"), "--resume"]) == 0


def test_a_package_trains_a_student(here: Path, monkeypatch: pytest.MonkeyPatch):
    (here / "site").mkdir()
    plugged.package(here / "site")
    monkeypatch.syspath_prepend(here / "site")
    (here / "run.yaml").write_text(RUN.format(here=here, source="squares", objective="loud"))
    assert main(["train", "--config", str(here / "run.yaml")]) == 0
    assert any("loud_" in name for name in losses(here))
    assert (here / "run/student/model_index.json").is_file()
    sys.modules.pop("louder")
