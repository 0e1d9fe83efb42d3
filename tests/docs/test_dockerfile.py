"""The Dockerfile: what a linter says of it, what it copies, and where there is a builder, that it builds."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "docs" / "Dockerfile"


def test_a_linter_has_nothing_to_say():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("needs hadolint, of the extra `dev`")
    said = subprocess.run([str(hadolint), str(FILE)], capture_output=True, text=True)
    assert (said.returncode, said.stdout) == (0, "")


def test_what_it_copies_is_there_and_all_that_a_wheel_is_built_of():
    copied = {name for line in re.findall(r"^COPY (.+)$", FILE.read_text(), re.M) for name in line.split()[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    assert copied >= {"pyproject.toml", "README.md", "LICENSE", "configs", "eval", "fastgen"}


@pytest.mark.slow
def test_it_builds_and_its_doctor_answers():
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode:
        pytest.skip("needs a Docker daemon")
    subprocess.run([docker, "build", "-q", "-t", "fastgen-test", "-f", str(FILE), str(ROOT)], check=True)
    said = subprocess.run([docker, "run", "--rm", "fastgen-test"], check=True, capture_output=True, text=True)
    assert "a run could start here" in said.stdout
