"""What the README shows is what there is."""

import re
from pathlib import Path

import pytest

from fastgen.config.yaml_file import load
from fastgen.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_config_to_distil_ones_own_pipeline_is_valid(tmp_path: Path):
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    assert load(tmp_path / "mine.yaml", ["train.batch=64", "objective.guidance=2"]).student.steps == (1, 2, 4)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|docs)/[\w/.]+\w", README))))
def test_the_files_it_names_exist(path: str):
    assert (ROOT / path).exists()


def test_its_table_lists_every_objective():
    assert re.findall(r"^\| `(\w+)`", README, flags=re.M) == list(OBJECTIVES)
