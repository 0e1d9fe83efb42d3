"""`fastgen list` and `fastgen init`: what there is, and something to start from."""

import re
import sys
from pathlib import Path

import plugged
import pytest

from fastgen.cli import main
from fastgen.config.shipped import shipped
from fastgen.config.yaml_file import load
from fastgen.data import SOURCES
from fastgen.distillation.plan import recipe_of
from fastgen.objectives import OBJECTIVES

PAGE = (Path(__file__).parents[2] / "docs/objectives.md").read_text(encoding="utf-8")


@pytest.fixture
def listed(capsys: pytest.CaptureFixture[str]):
    """What is listed -> its lines."""

    def listed(what: str) -> list[str]:
        assert main(["list", what]) == 0
        return capsys.readouterr().out.splitlines()

    return listed


def test_every_objective_is_listed_with_its_paper(listed):
    lines = listed("objectives")
    assert [line.split()[0] for line in lines] == list(OBJECTIVES)
    for line in lines:
        row = re.search(rf"^\| `{line.split()[0]}` \| .*$", PAGE, re.M)
        assert re.findall(r"arXiv:([\d.]+)", line)[:1] == re.findall(r"/abs/([\d.]+)", row[0])[:1]
    assert next(line for line in lines if line.startswith("kd ")).split("  needs ")[1].startswith("one_step, pairs ")


def test_every_source_is_listed_with_what_it_has_to_be_told(listed):
    lines = listed("sources")
    assert [line.split()[0] for line in lines] == list(SOURCES)
    assert re.search(r"folder +path, size +Images below", "\n".join(lines))


def test_every_config_is_listed_with_what_it_does(listed):
    assert [line.split("  ")[0] for line in listed("configs")] == list(shipped())


def test_what_a_package_offers_is_listed_and_what_is_wrong_with_it(listed, tmp_path: Path, monkeypatch):
    plugged.package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert re.search(r"^loud +needs images +arXiv:2303.01469$", listed("objectives")[-1])
    assert re.search(r"^squares +count +Grey squares.$", listed("sources")[-1])
    sys.modules.pop("louder")
    (tmp_path / "louder.py").write_text("import no_such_module")
    assert "cannot be imported: ModuleNotFoundError" in listed("objectives")[-1]


@pytest.mark.parametrize("name", list(shipped()))
def test_a_copied_config_is_the_shipped_one_and_finds_its_recipe(name: str, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", name]) == 0
    file = tmp_path / f"{name.rpartition('/')[2]}.yaml"
    assert file.read_text(encoding="utf-8") == shipped()[name].text
    assert f"fastgen train --config {file.name} --dry-run" in capsys.readouterr().out
    recipe_of(load(file), tmp_path)


def test_nothing_is_replaced(tmp_path: Path, capsys):
    first, second = tmp_path / "mine" / "a.yaml", tmp_path / "mine" / "b.yaml"
    assert main(["init", "digits/dmd2_1step", str(first)]) == 0
    assert main(["init", "digits/meanflow_1step", str(second)]) == 0, "their recipe is the same"
    assert sorted(file.name for file in first.parent.iterdir()) == ["a.yaml", "b.yaml", "teacher.yaml"]
    first.write_text("mine")
    assert main(["init", "digits/dmd2_1step", str(first)]) == 2
    assert f"{first} is already there, and nothing was written" in capsys.readouterr().err
    assert first.read_text() == "mine"
    (tmp_path / "mine" / "teacher.yaml").write_text("mine too")
    assert main(["init", "digits/scm_1step", str(tmp_path / "mine")]) == 2
    assert sorted(file.name for file in first.parent.iterdir()) == ["a.yaml", "b.yaml", "teacher.yaml"]


def test_an_unknown_config_is_told_the_nearest(capsys):
    assert main(["init", "sdxl/dmd2_4step_lra"]) == 2
    assert "did you mean sdxl/dmd2_4step_lora?" in capsys.readouterr().err
