"""The isolated process's own lines, run in this process: what they see is the same, only sooner."""

import json
from pathlib import Path
from types import SimpleNamespace

from fastgen.export import stock_process, verify


def _run(command: list[str], **_: object) -> SimpleNamespace:
    try:
        stock_process.main(json.loads(Path(command[-1]).read_text(encoding="utf-8")))
    except Exception as error:
        return SimpleNamespace(returncode=1, stderr=repr(error))
    return SimpleNamespace(returncode=0, stderr="")


HERE = SimpleNamespace(run=_run)


def verify_here() -> None:
    """For the rest of this process."""
    verify.subprocess = HERE
