"""The public names of `fastgen`: there, documented, typed, and imported only when they are asked for."""

import ast
import inspect
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fastgen

SOURCE = Path(fastgen.__file__).read_text(encoding="utf-8")


def test_importing_it_imports_nothing_heavy():
    code = "import sys, fastgen; print(*{'torch', 'diffusers', 'pydantic', 'numpy', 'eval'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not shown.stdout.split()


def test_type_checkers_and_the_table_know_the_same_names():
    (block,) = (
        node
        for node in ast.parse(SOURCE).body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    typed = {}
    for node in block.body:
        if isinstance(node, ast.ImportFrom):
            module = f"fastgen.{node.module}" if node.level else node.module
            typed |= {a.asname or a.name: f"{module}:{a.name}" if a.asname else module for a in node.names}
    assert typed == fastgen._HOMES
    assert sorted([*typed, "__version__"]) == sorted(fastgen.__all__)


@pytest.mark.parametrize("name", fastgen.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str):
    value = getattr(fastgen, name)
    assert name in dir(fastgen)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__


@pytest.mark.parametrize("name", fastgen.__all__)
def test_every_public_name_is_on_the_page_of_the_api(name: str):
    page = (Path(fastgen.__file__).parents[1] / "docs/api.md").read_text(encoding="utf-8")
    assert f"`{name}`" in page.partition("## A whole run")[0]


def test_the_version_is_that_of_the_installation():
    assert fastgen.__version__ == metadata.version("fastgen")


def test_an_unknown_name_is_refused():
    with pytest.raises(AttributeError, match="no attribute 'destil'; its public names are"):
        _ = fastgen.destil
