"""Of which commit a figure is."""

import subprocess
from pathlib import Path

import pytest

from fastgen.proofs.page import commit


def git(folder: Path, *command: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    asked = subprocess.run(["git", *who, *command], cwd=folder, check=True, capture_output=True, text=True)
    return asked.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A committed package of one module, with figures, in a folder of a repository."""
    folder = tmp_path / "package"
    (folder / "proofs").mkdir(parents=True)
    (folder / "proofs" / "recipes.py").write_text("RATE = 1\n")
    (folder / "proofs" / "measured.json").write_text("{}")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return folder


def test_what_one_run_wrote_does_not_mark_the_next(package: Path):
    made = git(package, "rev-parse", "--short", "HEAD")
    assert commit(package) == made
    (package / "proofs" / "measured.json").write_text('{"kd": {}}')
    (package.parent / "page.md").write_text("a table")
    (package / "kd.png").write_bytes(b"")
    assert commit(package) == made


@pytest.mark.parametrize("name", ["proofs/recipes.py", "objectives/mine.py"])
def test_code_that_is_not_committed_marks_a_figure(package: Path, name: str):
    made = commit(package)
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("RATE = 2\n")
    assert commit(package) == made + "+"


def test_outside_of_a_working_tree_no_commit_is_known(tmp_path: Path):
    assert commit(tmp_path) == "unknown"
