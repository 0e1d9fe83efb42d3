"""What the README shows is what there is."""

import re
from pathlib import Path

import pytest

from fastgen.config.yaml_file import load
from fastgen.objectives import OBJECTIVES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
OBJECTIVES_PAGE = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")


def test_the_config_to_distil_ones_own_pipeline_is_valid(tmp_path: Path):
    (block,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.S)
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    assert load(tmp_path / "mine.yaml", ["train.batch=64", "objective.guidance=2"]).student.steps == (1, 2, 4)


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:configs|docs)/[\w/.]+\w", README))))
def test_the_files_it_names_exist(path: str):
    assert (ROOT / path).exists()


def test_it_counts_the_objectives_and_their_page_lists_each():
    assert f"| {len(OBJECTIVES)} [objectives](docs/objectives.md)" in README
    table = OBJECTIVES_PAGE.partition("| name | paper |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)`", table, flags=re.M) == list(OBJECTIVES)


def test_it_is_short():
    assert len(README.splitlines()) <= 130
