"""The pages of the docs say what there is: generated ones are up to date, and what others name exists."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import class_tables
import generate
import pytest
from pydantic import BaseModel, Field, create_model

from fastgen.cli import COMMANDS
from fastgen.config.dialect import parsed
from fastgen.config.strict import Strict
from fastgen.config.yaml_file import load

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_generated_pages_are_what_the_code_says():
    for page, text in generate.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run python docs/generate.py"


@pytest.mark.parametrize("kind", generate.documented(), ids=lambda kind: kind.__name__)
def test_every_setting_has_a_meaning(kind: type):
    assert not [setting.name for setting in class_tables.settings_of(kind) if not setting.meaning]


@pytest.mark.parametrize("kind", generate.documented(), ids=lambda kind: kind.__name__)
def test_a_default_is_yaml_that_a_config_may_hold(kind: type):
    """What is pasted is read as the default itself."""
    rows = zip(class_tables.settings_of(kind), class_tables._fields(kind), strict=True)
    rows = [(setting.default[1:-1], field) for setting, field in rows if setting.default != "required"]
    read = create_model("Read", __base__=Strict, **{name: (annotation, ...) for _, (name, annotation, *_) in rows})
    pasted = parsed("\n".join(f"{name}: {text}" for text, (name, *_) in rows) or "{}")
    assert vars(read.model_validate(pasted)) == {name: default for _, (name, _, default, _) in rows}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_files_that_a_page_names_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"```bash\n(.*?)```|`([^`\n]+)`", text, re.S)
    commands = {name for block in code for name in re.findall(r"^\s*fastgen ([a-z]+)\b", "\n".join(block), re.M)}
    assert commands <= set(COMMANDS)
    files = re.findall(r"(?<![\w/])(?:configs|docs|eval|fastgen|notebooks|tests)/[\w/.]+\.\w+", text)
    assert not [file for file in files if not (ROOT / file).is_file() and "NAME" not in file]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_names_a_place_on_a_machine(page: Path):
    assert not re.findall(r"(?<![\w.])/(?:home|root|work|tmp|mnt|Users)/\S*", page.read_text(encoding="utf-8"))


def test_the_config_to_start_from_is_valid(tmp_path: Path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/start.md").read_text(encoding="utf-8"), flags=re.S)
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    assert load(tmp_path / "mine.yaml", ["train.batch=64", "objective.guidance=2"]).student.steps == (1, 2, 4)


@dataclass(frozen=True)
class Inner:
    """A part.

    Args:
        law: of the part.
        scale: how much, which needs a second
            line to say.
    """

    scale: float = 1.0
    law: Literal["one"] = "one"


class Outer(BaseModel):
    """The whole | of it.

    left, right: sides, `a | b`.

    count: how many.
    """

    left: str
    right: Path | None = None
    count: Annotated[int, Field(ge=1, lt=5)] = 2
    inner: Inner = Inner(scale=2.0)
    described: float = Field(0.5, description="by its own field")


def test_a_table_says_type_default_and_meaning_of_every_field():
    assert class_tables.model_page(Outer).splitlines() == [
        "## Outer",
        "",
        "The whole | of it.",
        "",
        "| name | value | default | meaning |",
        "|---|---|---|---|",
        "| `left` | text | required | sides, `a \\| b`. |",
        "| `right` | path or null | `null` | sides, `a \\| b`. |",
        "| `count` | whole number, at least 1, below 5 | `2` | how many. |",
        "| `inner` | [Inner](#inner) | `{scale: 2, law: one}` |  |",
        "| `described` | number | `0.5` | by its own field |",
        "",
        "## Inner",
        "",
        "A part.",
        "",
        "| name | value | default | meaning |",
        "|---|---|---|---|",
        "| `scale` | number | `1` | how much, which needs a second line to say. |",
        "| `law` | `one` | `one` | of the part. |",
    ]
