"""What a run says: a progress bar, JSON lines always, Accelerate's trackers if asked for.

What follows from the config alone is in one file, which a resumed run writes byte for byte as one that was never
broken off; time, pace and memory, which no two runs share, are in another.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from tqdm import tqdm

from ..disk import named
from ..files import atomic_json, atomic_text
from .bar import Bar

FILE = "log.jsonl"
PACE = "pace.jsonl"
ABOUT = "run.json"


class RunLog:
    """The log of a run; only the main process writes.

    Args:
        accelerator: Accelerate's object, which knows the trackers and the rank.
        folder: output folder of the run.
    """

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self._accelerator, self._folder = accelerator, folder
        self._path = folder / FILE
        self.about: dict[str, Any] = {}

    def begin(self, step: int) -> None:
        """Starts the trackers; TensorBoard hides what a run that was broken off wrote from this step on."""
        self._accelerator.init_trackers("fastgen", init_kwargs={"tensorboard": {"purge_step": step}})
        self.tell_about({})

    def tell_about(self, more: Mapping[str, Any]) -> None:
        """Keeps beside the log what is known of the run besides its figures."""
        self.about |= more
        if self._accelerator.is_main_process and self.about:
            atomic_json(self._folder / ABOUT, self.about)

    def rewind(self, stage: int, cycle: int, *, due: bool = False) -> None:
        """Drops lines that a resumed run will write again: those after `cycle` of `stage`.

        Args:
            due: of that cycle itself what it was is known, and its figures are still to be logged.
        """
        for path in (self._path, self._folder / PACE) if self._accelerator.is_main_process else ():
            if path.exists():
                lines = path.read_text(encoding="utf-8").splitlines()
                kept = [line for line in lines if _position(line, due=due) <= (stage, cycle)]
                atomic_text(path, "".join(f"{line}\n" for line in kept))

    def write(
        self,
        *,
        stage: int,
        cycle: int,
        step: int,
        values: Mapping[str, float],
        pace: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """One line: where the run stands, its figures (null if not finite), and a note for the person who watches.

        Args:
            pace: figures of this machine and moment, which go to a file of their own and to the trackers.
        """
        if not self._accelerator.is_main_process:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._line(stage, cycle, {**finite, **({"note": note} if note else {})})
        if pace:
            self._line(stage, cycle, {"images": values.get("images"), **pace}, file=PACE)
        self._accelerator.log({**values, **(pace or {})}, step=step)
        if note:
            self.say(note)

    def pictures(self, images: Mapping[str, Image.Image], figures: Mapping[str, float], *, step: int) -> None:
        """Pictures by name, and figures of them, to the trackers that take them; no line."""
        if not self._accelerator.is_main_process:
            return
        arrays = {name: np.asarray(image.convert("RGB"))[None] for name, image in images.items()}
        for tracker in self._accelerator.trackers:
            if hasattr(tracker, "log_images"):
                told = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images(arrays, step=step, **told)
            elif tracker.name == "mlflow":
                _as_artifacts(tracker, images, step)
        if figures:
            self._accelerator.log(dict(figures), step=step)

    def incident(self, *, stage: int, cycle: int, what: str, samples: Sequence[int]) -> None:
        """A line of a turn that was out of line, with the numbers in the data of what it read."""
        if self._accelerator.is_main_process:
            self._line(stage, cycle, {"incident": what, "samples": list(samples)})

    def note(self, *, stage: int, cycle: int, note: str) -> None:
        """A line and a sentence of what a run does where it stands."""
        if self._accelerator.is_main_process:
            self._line(stage, cycle, {"note": note})
            self.say(note)

    def _line(self, stage: int, cycle: int, told: Mapping[str, Any], *, file: str = FILE) -> None:
        path = self._folder / file
        with named(path), path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"stage": stage, "cycle": cycle, **told}, allow_nan=False) + "\n")

    def say(self, text: str) -> None:
        """A sentence for the person who watches."""
        if self._accelerator.is_main_process:
            tqdm.write(text, file=sys.stderr)

    def bar(self, name: str, *, share: float) -> Bar:
        """Progress, with images, rate and time left."""
        return Bar(name, share=share, say=self.say, hidden=not self._accelerator.is_main_process)


def _as_artifacts(tracker: Any, images: Mapping[str, Image.Image], step: int) -> None:
    """Logs images to Accelerate's MLflow tracker, which takes only files."""
    with TemporaryDirectory() as folder:
        for name, image in images.items():
            file = Path(folder) / f"{step:09d}.png"
            image.save(file)
            tracker.log_artifact(str(file), artifact_path=name)


def _position(line: str, *, due: bool) -> tuple[int, int]:
    """The cycle that a run has to resume behind in order not to write a line again; for a torn last line none."""
    try:
        record = json.loads(line)
        return record["stage"], record["cycle"] + (due and "incident" not in record)
    except (json.JSONDecodeError, KeyError, TypeError):
        return sys.maxsize, sys.maxsize
