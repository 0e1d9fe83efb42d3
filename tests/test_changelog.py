"""The changelog is about the version that is installed."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_its_first_entry_is_the_version_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    entries = re.findall(r"^## \[(.+)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert entries[0] == version
    assert entries == sorted(entries, key=lambda entry: [int(part) for part in entry.split(".")], reverse=True)
