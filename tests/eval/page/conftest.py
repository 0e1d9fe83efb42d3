"""A report of which nothing is missing, and its page."""

import json
from pathlib import Path
from xml.etree.ElementTree import Element

import pytest
from dom import parse
from made_up_report import report
from shown_report import Data

from eval.metrics_json import FILE
from eval.page import html


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of which nothing is missing."""
    folder = tmp_path_factory.mktemp("report")
    (folder / FILE).write_text(json.dumps(report(folder), allow_nan=False))
    html.write(folder)
    return folder


@pytest.fixture
def data(folder: Path) -> Data:
    """What its metrics.json says, to be changed."""
    return json.loads((folder / FILE).read_text())


@pytest.fixture(scope="module")
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def root(text: str) -> Element:
    return parse(text)
