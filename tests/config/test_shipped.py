"""The configs that come with fastgen are found by name, in a checkout and in a wheel."""

import json
import os
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path

import pytest

from fastgen.config import shipped
from fastgen.config.yaml_file import dump, fingerprint, load
from fastgen.errors import UserError

ROOT = Path(__file__).parents[2]


def test_every_file_in_configs_is_found_by_its_name():
    files = {file.relative_to(ROOT / "configs").as_posix() for file in (ROOT / "configs").rglob("*.yaml")}
    assert {f"{name}.yaml" for name in shipped.shipped()} == files
    assert len(files) > 50


def test_a_summary_is_the_first_line_of_the_comments():
    config = shipped.named("digits/dmd2_1step")
    assert config.summary == "DMD2 (arXiv:2405.14867) to one step on handwritten digits; the first thing to run."
    assert all(each.text.startswith("# ") and len(each.summary) > 20 for each in shipped.shipped().values())


@pytest.mark.parametrize("name", shipped.shipped())
def test_a_shipped_config_survives_being_written(name: str, tmp_path: Path):
    config = load(shipped.named(name).path)
    (tmp_path / "resolved.yaml").write_text(dump(config))
    assert load(tmp_path / "resolved.yaml") == config
    assert fingerprint(config) == json.loads(json.dumps(fingerprint(config)))


@pytest.mark.parametrize("name", ["sdxl/dmd2_4step_lora.yaml", "configs/sdxl/dmd2_4step_lora.yaml"])
def test_a_name_may_be_written_as_a_path(name: str):
    assert shipped.named(name) == shipped.named("sdxl/dmd2_4step_lora")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sdxl/dmd2_4steps_lora", "did you mean sdxl/dmd2_4step_lora?"),
        ("phased_dmd_4step_lora", "phased_dmd_4step_lora?"),
        ("", "`fastgen list configs`"),
        ("../pyproject", "`fastgen list configs`"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(name: str, hint: str):
    with pytest.raises(UserError, match="no config called") as error:
        shipped.named(name)
    assert hint in str(error.value)


def test_an_installation_without_configs_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "fastgen")
    with pytest.raises(UserError, match="has no configs: install it again"):
        shipped.folder()


def test_a_wheel_has_the_configs_and_finds_its_own(tmp_path: Path):
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="needs hatchling, of the extra `dev`")
    (built,) = wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as archive:
        archive.extractall(tmp_path / "site")
    assert (tmp_path / "site/fastgen/py.typed").is_file()
    assert (tmp_path / "site/eval/py.typed").is_file()
    page = {file.name for file in (tmp_path / "site/eval/page").iterdir()}
    assert {"report.html.jinja", "report.css", "report.js"} <= page
    (about,) = (tmp_path / "site").glob("*.dist-info")
    assert (about / "licenses/LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    described = message_from_string((about / "METADATA").read_text())
    assert described["License-Expression"] == "Apache-2.0"
    assert described["Summary"]
    assert described["Keywords"]
    assert described.get_payload().startswith("# fastgen")
    code = "from fastgen.config.shipped import *; print(folder()); print(*shipped())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path, env=environment
    ).stdout.splitlines()
    assert Path(shown[0]) == tmp_path / "site/fastgen/configs"
    assert shown[1].split() == list(shipped.shipped())
