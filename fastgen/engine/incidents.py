"""What is kept of turns that were out of line, for a person to see: a line in the log, and the batch in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import TrainingError, first_few
from ..files import atomic_folder, atomic_json
from .distributed import is_first
from .evidence import NAMED, Evidence, causes, evidence_of
from .guard import Incident
from .log import RunLog
from .stage import Stage

MOST = 8
"""Batches that are kept in one folder."""
MOST_BYTES = 64 * 2**20
"""Bytes of the tensors of one."""


class Incidents:
    """Writes down what the guard of a stage finds; the first process does.

    Args:
        log: of the run.
        folder: of the batches.
    """

    def __init__(self, log: RunLog, folder: Path) -> None:
        self._log, self._folder = log, folder

    @contextmanager
    def noted(self, stage: Stage) -> Iterator[None]:
        """Within, a cycle of the stage is trained.

        Raises:
            TrainingError: it broke down there; says by which samples and weights, as far as that can be told.
        """
        try:
            yield
        except TrainingError as error:
            found = [self._note(stage, incident, fatal=True) for incident in self._of(stage)]
            raise type(error)(" ".join([f"{error}.", *found[-1:]]).removesuffix(".")) from error
        for incident in self._of(stage):
            self._note(stage, incident, fatal=False)

    def _of(self, stage: Stage) -> list[Incident]:
        found = stage.guard.taken()
        return found if is_first() else []

    def _note(self, stage: Stage, incident: Incident, *, fatal: bool) -> str:
        """Logs an incident and keeps its batch; what was found of it, in sentences."""
        evidence = evidence_of(stage.feed, incident.taken.drawn.positions)
        about = [f"The batch is {first_few(evidence.told(), NAMED)}."]
        if fatal and not stage.sharded:
            about += causes(stage, evidence)
        about.append(self._kept(stage, incident, evidence))
        done = incident.cycle + 1  # so that a run resumed before this cycle drops the line
        self._log.incident(stage=stage.index, cycle=done, what=incident.said, samples=evidence.numbers)
        if not fatal:
            self._log.say(" ".join([f"{incident.said}.", *about]))
        return " ".join(about)

    def _kept(self, stage: Stage, incident: Incident, evidence: Evidence) -> str:
        taken = incident.taken
        folder = self._folder / f"{stage.index}-{incident.cycle:08d}-{taken.turn[0]}"
        if folder.parent.is_dir() and len(list(folder.parent.iterdir())) >= MOST:
            return f"{self._folder} holds {MOST} batches already, and this one is not kept."
        tensors = evidence.tensors(MOST_BYTES)
        about = {
            "said": incident.said,
            "stage": stage.config.name,
            "turn": taken.turn,
            "figures": {name: str(value) for name, value in taken.figures.items()},
            "noise": {"seed": stage.seed, "stage": stage.index, "cycle": incident.cycle, "turn": taken.drawn.number},
            "positions": [taken.drawn.positions.start, taken.drawn.positions.stop],
            "samples": evidence.numbers,
            "names": evidence.names,
            "prompts": evidence.items.prompts,
            "saved": len(next(iter(tensors.values()), ())),
        }
        try:
            with atomic_folder(folder, replace=True) as new:
                save_file(tensors, new / "batch.safetensors")
                atomic_json(new / "batch.json", about)
        except (OSError, SafetensorError) as error:
            return f"It could not be kept in {folder}: {error}."
        return f"It is kept in {folder}."
