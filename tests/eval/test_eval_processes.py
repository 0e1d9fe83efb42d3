"""Something happens to one of two processes of an evaluation: both end soon, by the same words."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faults
import pytest
import small_run
from eval_place import COUNT, EXTRACTOR_OPTIONS, place

__all__ = ["place"]

KILLED = -9
ENDS = {  # what happens -> exit codes, and what the first process says
    faults.bad_image: ((2, 2), "stopped: UserError: image 7.png cannot be read"),
    faults.told: ((143, 143), "stopped by SIGTERM"),
    faults.killed: ((6, KILLED), "process 1 (pid "),
    faults.stopped: ((6, KILLED), "has not answered for 3 s"),
}


@pytest.mark.parametrize(
    "happens",
    [what if what is faults.bad_image else pytest.param(what, marks=pytest.mark.slow) for what in ENDS],
    ids=lambda what: what.__name__,
)
def test_what_happens_to_one_process_of_an_evaluation_ends_both(
    place: Path, tmp_path: Path, happens: Callable[[Any], None]
) -> None:
    codes, words = ENDS[happens]
    paths = ["--reference", str(place / "real"), "--extractor", str(place / "extractor")]
    sides = ["--student", str(place / "student"), "--steps", "1", "--device", "cpu", "--num-images", str(COUNT)]
    arguments = ["eval", *paths, *sides, *EXTRACTOR_OPTIONS, "--timeout", "3"]
    start = time.monotonic()
    found = small_run.in_processes(2, faults.evaluated, arguments, tmp_path / "report", happens)
    said = [(tmp_path / f"report.{rank}").read_text() for rank in (0, 1)]
    print(f"{happens.__name__}: {found} after {time.monotonic() - start:.1f} s", *said, sep="\n--- ")
    assert found == list(codes)
    assert words in said[0]
    assert not any("Traceback" in one or "gloo" in one for one in said)
