"""The commands of README, pages, notebooks and configs ask for runs that no setting stands in the way of."""

import re
import shlex
from pathlib import Path

import pytest

from fastgen.config.yaml_file import load
from fastgen.distillation.checks import check_stages

ROOT = Path(__file__).parents[2]
TEXTS = [
    file for glob in ("*.md", "docs/**/*.md", "configs/**/*.yaml", "notebooks/*.ipynb") for file in ROOT.glob(glob)
]
COMMAND = re.compile(r"(?:fastgen (?:train|plan|precompute)|train\.py) --config (configs/[\w/]+\.yaml)([^\n`|#]*)")
MEANT_TO_FAIL = "train.bacth=4"


def asked() -> list[tuple[str, tuple[str, ...]]]:
    """(config, overrides) of each command, once."""
    found = set()
    for text in (file.read_text(encoding="utf-8").replace("\\\n", " ") for file in TEXTS):
        for config, rest in COMMAND.findall(text):
            overrides = tuple(word.rstrip(",;") for word in shlex.split(rest) if re.match(r"[a-z][\w.]*=", word))
            if MEANT_TO_FAIL not in overrides and (ROOT / config).is_file():
                found.add((config, overrides))
    return sorted(found)


@pytest.mark.parametrize(("config", "overrides"), asked())
def test_a_command_asks_for_a_run_that_is_not_refused(config: str, overrides: tuple[str, ...]):
    check_stages(load(ROOT / config, [one.replace("$SEED", "0") for one in overrides]))
