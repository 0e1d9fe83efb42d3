"""What a run says: a progress bar, JSON lines always, Accelerate's trackers if asked for."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from tqdm import tqdm

from ..disk import named
from ..files import atomic_text

FILE = "log.jsonl"


class RunLog:
    """The log of a run; only the main process writes.

    Args:
        accelerator: Accelerate's object, which knows the trackers and the rank.
        folder: output folder of the run.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self._accelerator = accelerator
        self._path = folder / FILE

    def begin(self, step: int) -> None:
        """Starts the trackers; TensorBoard hides what a run that was broken off wrote from this step on."""
        self._accelerator.init_trackers("fastgen", init_kwargs={"tensorboard": {"purge_step": step}})

    def rewind(self, stage: int, cycle: int, *, due: bool = False) -> None:
        """Drops lines that a resumed run will write again: those after `cycle` of `stage`.

        Args:
            due: of that cycle itself what it was is known, and its figures are still to be logged.
        """
        if self._accelerator.is_main_process and self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _position(line, due=due) <= (stage, cycle)]
            atomic_text(self._path, "".join(f"{line}\n" for line in kept))

    def write(self, *, stage: int, cycle: int, step: int, values: Mapping[str, float], note: str | None = None) -> None:
        """One line: where the run stands, its figures (null if not finite), and a note for the person who watches."""
        if not self._accelerator.is_main_process:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._line(stage, cycle, {**finite, **({"note": note} if note else {})})
        self._accelerator.log(dict(values), step=step)
        if note:
            self.say(note)

    def incident(self, *, stage: int, cycle: int, what: str, samples: Sequence[int]) -> None:
        """A line of a turn that was out of line, with the numbers in the data of what it read."""
        if self._accelerator.is_main_process:
            self._line(stage, cycle, {"incident": what, "samples": list(samples)})

    def note(self, *, stage: int, cycle: int, note: str) -> None:
        """A line and a sentence of what a run does where it stands."""
        if self._accelerator.is_main_process:
            self._line(stage, cycle, {"note": note})
            self.say(note)

    def _line(self, stage: int, cycle: int, told: Mapping[str, Any]) -> None:
        with named(self._path), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "cycle": cycle, **told}, allow_nan=False) + "\n")

    def say(self, text: str) -> None:
        """A sentence for the person who watches."""
        if self._accelerator.is_main_process:
            tqdm.write(text, file=sys.stderr)

    def bar(self, name: str, *, total: int, done: int) -> "tqdm[Any]":
        """Progress in images, with rate and time left."""
        hidden = not self._accelerator.is_main_process
        return tqdm(
            total=total, initial=done, desc=name, unit="image", unit_scale=True, disable=hidden, dynamic_ncols=True
        )


def _position(line: str, *, due: bool) -> tuple[int, int]:
    """The cycle that a run has to resume behind in order not to write a line again; for a torn last line none."""
    try:
        record = json.loads(line)
        return record["stage"], record["cycle"] + (due and "incident" not in record)
    except (json.JSONDecodeError, KeyError, TypeError):
        return sys.maxsize, sys.maxsize
