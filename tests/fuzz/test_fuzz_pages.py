"""Reports and folders of runs that were damaged or made up become a page, or are refused in words."""

import json
from pathlib import Path
from typing import Any

import made_up_report
import made_up_run
import pytest
from fuzzing import after, changes, fuzz, mutated
from hypothesis import strategies as st

from eval.metrics_json import FILE
from eval.page import html
from eval.watch.files import ABOUT, LOCK, LOG, PACE, RunFiles
from eval.watch.page import page


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("report")
    return folder, made_up_report.report(folder, size=8)


@fuzz(changes, few=5)
def test_reports(case: list[Any], reported: tuple[Path, dict[str, Any]]) -> None:
    folder, whole = reported
    (folder / FILE).write_text(json.dumps(after(case, whole)))
    html.write(folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up_run.write_run(tmp_path_factory.mktemp("run") / "run", cycles=4)
    made_up_run.hold(folder)
    return folder


PREVIEW = "previews/0-kd-000000800.json"
LINES = (
    b'{"stage": 0, "cycle": 1, "images": 40, "generator/dm": 1.0, "note": "a"}\n{"stage": 1, "cycle": 2, "time": 1e9}\n'
)


@fuzz(st.tuples(st.sampled_from([ABOUT, LOCK, PREVIEW, LOG, PACE]), changes, mutated(LINES)), few=5)
def test_folders_of_runs(case: tuple[str, list[Any], bytes], run: Path) -> None:
    name, made, lines = case
    file = run / name
    before = file.read_bytes()
    try:
        if name in (LOG, PACE):
            whole = [json.loads(line) for line in LINES.splitlines()]
            told = "".join(f"{json.dumps(after(made, line))}\n" for line in whole).encode()
            file.write_bytes(told if len(made) % 2 else lines)
        else:
            file.write_text(json.dumps(after(made, json.loads(before))))
        page(RunFiles.read(run), token="x", asked=False)
    finally:
        file.write_bytes(before)
