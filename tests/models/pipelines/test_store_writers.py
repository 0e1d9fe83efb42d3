"""Several runs write one cache of prompts at once, and one of them is killed: every row is whole, or not there."""

import os
import signal
import time
from pathlib import Path

import pytest
import small_run
import torch

from fastgen.models.conditioning import Conditioning
from fastgen.models.layout import same
from fastgen.models.pipelines import store
from fastgen.models.pipelines.store import Store

pytestmark = pytest.mark.slow  # four processes, each of which starts anew: 15 s
VALUES = [f"prompt {number}" for number in range(60)]
AT_ONCE = 7  # rows of a file


def row(value: str) -> Conditioning:
    """What a prompt is encoded to, the same in every process; 80 KB, so that writing takes its time."""
    number = VALUES.index(value)
    return Conditioning(1, {"x": torch.full((1, 20_000 + number), float(number)), "more": {"said": [value]}})


def written(folder: Path, killed: bool) -> None:
    """In a process of its own: encodes what is missing, a few at a time, from a place of its own in the list."""
    rank = int(os.environ.get("RANK", "0"))
    store.SHARD_ROWS = AT_ONCE
    rows, values = Store(folder), VALUES[20 * rank :] + VALUES[: 20 * rank]
    begun = folder.with_suffix(".begun")
    if killed and rank == 1:
        save = store.save_file

        def save_and_die(*arguments: object, **named: object) -> None:
            begun.touch()
            save(*arguments, **named)
            os.kill(os.getpid(), signal.SIGKILL)  # after a file is written, before it has its name

        store.save_file = save_and_die
    while killed and rank == 0 and not begun.exists():
        time.sleep(0.01)
    while len(missing := rows.missing(values)):
        rows.keep((values[number], row(values[number])) for number in missing[: 2 * AT_ONCE])
        rows.refresh()


def sound(folder: Path) -> bool:
    rows = Store(folder)
    found = [rows.row(value) for value in VALUES]
    return all(one is not None and same(one, row(value)) for one, value in zip(found, VALUES, strict=True))


def test_two_runs_write_one_cache_and_every_row_is_whole(tmp_path: Path):
    assert small_run.in_processes(2, written, tmp_path / "both", False) == [0, 0]
    assert sound(tmp_path / "both")
    assert not [file for file in (tmp_path / "both").iterdir() if file.suffix != ".safetensors"]


def test_one_of_two_that_is_killed_within_a_file_leaves_no_row_in_part(tmp_path: Path):
    assert small_run.in_processes(2, written, tmp_path / "one", True) == [0, -signal.SIGKILL]
    assert sound(tmp_path / "one")
    Store(tmp_path / "one").keep([("another prompt", row(VALUES[0]))])
    assert not [file for file in (tmp_path / "one").iterdir() if file.suffix != ".safetensors"]
