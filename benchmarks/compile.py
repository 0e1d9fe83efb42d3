r"""Seconds of a compiled stage's first cycle, with no cache and with the one that it left, and of those after it.

    python -m benchmarks.compile --size sdxl --batch 4 --no-checkpointing --out results/compile.json

Each is a process of its own; options are those of `benchmarks.step`.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .record import ROOT, written

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and, where asked to, writes the figures."""
    told, step = _parser().parse_known_args(arguments)
    found: dict[str, Any] = {"benchmark": "compile"}
    with TemporaryDirectory() as folder:
        for name in ("cold", "kept cache"):
            one = _run(step, Path(folder), compiled=not told.eager)
            found |= {"machine": one["machine"], "setting": {"size": one["size"], **one["setting"]}}
            found[name] = {
                "first_cycle_seconds": one["seconds"]["first cycle"],
                "cycle_seconds": one["seconds"]["cycle"],
            }
    return written(found, told.out)


def _run(step: Sequence[str], folder: Path, *, compiled: bool) -> dict[str, Any]:
    """The step benchmark with its cache in a folder."""
    out, flag = folder / "step.json", "--compile" if compiled else "--no-compile"
    line = [sys.executable, "-m", "benchmarks.step", *step, flag, "--no-plain", "--out", str(out)]
    subprocess.run(
        line, check=True, cwd=ROOT, env={**os.environ, CACHE: str(folder / "cache")}, stdout=subprocess.DEVNULL
    )
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compile", description=__doc__.splitlines()[0])
    parser.add_argument("--eager", action="store_true", help="without compilation, to see what of it is start-up")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    main()
