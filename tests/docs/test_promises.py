"""The page of promises names tests that exist, one row for each promise."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = [line.split("|") for line in (ROOT / "docs/promises.md").read_text().splitlines() if re.match(r"\| \d", line)]


def names_in(file: str) -> set[str]:
    return {part.name for part in ast.parse((ROOT / file).read_text()).body if isinstance(part, ast.FunctionDef)}


def test_every_promise_has_its_row_and_state():
    assert [int(row[1]) for row in ROWS] == [*range(1, 49)]
    assert {row[3].strip() for row in ROWS} <= {"holds", "partly", "does not apply"}


def test_the_tests_that_hold_them_exist():
    named = [name for row in ROWS for name in re.findall(r"`(tests/\S+)`", "|".join(row))]
    assert len(named) > 40
    missing = [name for name in named if name.split("::")[1] not in names_in(name.split("::")[0])]
    assert not missing
