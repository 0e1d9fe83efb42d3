"""Exit codes: one list in the code, one table for users."""

import re
from pathlib import Path

from fastgen.errors import AFTER_SIGNAL, ExitCode
from fastgen.stopping import SIGNALS

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def test_every_exit_code_is_documented_by_its_name():
    rows = re.findall(r"^\| (\d+) \| (\w+) \| \w", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert [(int(code), name) for code, name in rows] == [(int(code), code.name) for code in ExitCode]


def test_the_exit_code_of_a_signal_is_the_shells():
    assert [ExitCode[number.name] for number in SIGNALS] == [AFTER_SIGNAL + number for number in SIGNALS]
