"""A trial from its training to its record; what is already there is not done again."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from eval.metrics_json import Report
from fastgen.config.shipped import named
from fastgen.data import SOURCES
from fastgen.errors import UserError
from fastgen.files import atomic_text

from ..record import ROOT
from .protocols import PROTOCOLS, Protocol
from .record import Record, course_of, rounded, rows_of
from .table import Trial

VERSIONS = ("torch", "diffusers", "transformers")
ASSETS = "ASSETS"
"""In a setting of a trial, the folder of teachers, data and extractors."""


@dataclass(frozen=True)
class Terms:
    """What the trials of one call share.

    Attributes:
        out: folder of everything.
        assets: teachers, data and extractors.
        protocol: how those are measured that name no other.
        minutes: of training.
        deadline: by the monotonic clock; what runs then is ended, and found again as it is by a later call.
        cards: GPUs, over which trials are spread; 0 leaves the choice to the commands.
        at_once: trials that share a card.
        commit: of the code; None where it is not known.
        settings: overrides for all of them.
        measured: options for every evaluation.
    """

    out: Path
    assets: Path
    protocol: Protocol
    minutes: float
    deadline: float
    cards: int
    at_once: int
    commit: str | None
    settings: tuple[str, ...]
    measured: tuple[str, ...]

    @property
    def places(self) -> list[int | None]:
        """The card of each trial that may run at a time."""
        return [*(range(self.cards) if self.cards else [None])] * self.at_once

    @property
    def shared(self) -> Path:
        """Folder of what all of them read."""
        return self.out / "shared"

    def of(self, trial: Trial) -> Protocol:
        """How this one is measured."""
        return PROTOCOLS[trial.protocol] if trial.protocol else self.protocol

    def record(self, name: str) -> Path:
        """The file that a trial leaves."""
        return self.out / "records" / f"{name}.json"


class OutOfTimeError(Exception):
    """The deadline came first."""


class FailedError(Exception):
    """A command failed; says how."""


def conduct(trials: dict[str, Trial], terms: Terms) -> dict[str, str]:
    """Carries them out, several at once; how each stands afterwards."""
    for protocol in {trial.protocol: terms.of(trial) for trial in trials.values()}.values():
        protocol.prepare(terms.assets, terms.shared)
    free: Queue[int | None] = Queue()
    for card in terms.places:
        free.put(card)
    with ThreadPoolExecutor(len(terms.places)) as pool:
        started = {name: pool.submit(_conducted, name, trial, terms, free) for name, trial in trials.items()}
        return {name: future.result() for name, future in started.items()}


def _conducted(name: str, trial: Trial, terms: Terms, free: "Queue[int | None]") -> str:
    file = terms.record(name)
    if file.is_file() and Record.read(file).failed is None:
        return "done before"
    try:
        with _taken(free) as card:
            found = _record(name, trial, terms, card)
    except OutOfTimeError:
        return "left"
    found.write(file)
    return f"failed: {found.failed}" if found.failed else "done"


@contextmanager
def _taken(free: "Queue[int | None]") -> Iterator[int | None]:
    card = free.get()
    try:
        yield card
    finally:
        free.put(card)


def _record(name: str, trial: Trial, terms: Terms, card: int | None) -> Record:
    folder = terms.out / name
    config, minutes = trial.loaded(*terms.settings), trial.minutes or terms.minutes
    asked = (*trial.set, *trial.budget(minutes), *terms.settings)
    about = {
        "name": name,
        "config": trial.config,
        "settings": (*trial.set, *terms.settings),
        "note": trial.note,
        "commit": terms.commit,
        "seed": trial.seed,
        "at_once": terms.at_once,
        "minutes": rounded(minutes),
    }
    sources = {kind: source for source, kind in SOURCES.items()}
    try:
        seconds = _trained(folder, trial, terms, card, sources[type(config.data)], asked)
        reports = _measured(folder, trial, terms, card)
    except FailedError as error:
        return Record(**about, card=None, failed=str(error))
    first = Report.read(next(iter(reports.values()))).provenance
    previews = sorted((folder / "run/previews").glob("*.png"), key=lambda file: file.stat().st_mtime)
    if previews:
        terms.record(name).parent.mkdir(exist_ok=True)
        shutil.copy(previews[-1], terms.record(name).with_suffix(".png"))
    return Record(
        **about,
        card=first.device,
        versions={package: first.versions[package] for package in VERSIONS if package in first.versions},
        seconds=rounded(seconds),
        rows=rows_of(reports),
        **course_of(folder / "run", config),
    )


def _trained(folder: Path, trial: Trial, terms: Terms, card: int | None, source: str, asked: tuple[str, ...]) -> float:
    """Seconds of the command that trained it, now or before."""
    clock = folder / "seconds.txt"
    if clock.is_file():
        return float(clock.read_text(encoding="utf-8"))
    if time.monotonic() + 60 * (trial.minutes or terms.minutes) > terms.deadline:
        raise OutOfTimeError
    run = folder / "run"
    protocol = terms.of(trial)
    places = protocol.places(terms.assets, terms.shared, source)
    overrides = [f"out={run}", f"seed={trial.seed}", *places, *protocol.watched(terms.assets, terms.shared)]
    there = [setting.replace(ASSETS, str(terms.assets)) for setting in asked]
    command = ["train.py", "--config", str(named(trial.config).path), *overrides, *there]
    resumed = ["--resume"] if (run / "checkpoints").is_dir() else []
    spent = _carried_out([*command, *resumed], folder / "train", terms, card)
    atomic_text(clock, f"{spent:.1f}\n")
    return spent


def _measured(folder: Path, trial: Trial, terms: Terms, card: int | None) -> dict[str, Path]:
    """The reports by name."""
    found = {}
    for name, options in terms.of(trial).reports(terms.assets, terms.shared).items():
        report = found[name] = folder / f"report-{name}".rstrip("-")
        if not (report / "report.html").is_file():  # which is written last
            steps = ["--steps", ",".join(map(str, trial.steps))] if trial.steps else []
            command = ["-m", "eval", "--student", str(folder / "run/student"), *steps]
            command += [*options, "--out", str(report), "--overwrite", *terms.measured]
            _carried_out(command, folder / report.name, terms, card)
    return found


def _carried_out(command: list[str], log: Path, terms: Terms, card: int | None) -> float:
    """Its seconds; what it says is in files beside its folder.

    Raises:
        OutOfTimeError: it was ended at the deadline.
        FailedError: it failed, with its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // len(terms.places)))}
    environment |= {} if card is None else {"CUDA_VISIBLE_DEVICES": _named(card)}
    started = time.monotonic()
    with log.with_suffix(".txt").open("w", encoding="utf-8") as said:
        child = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=environment, stdout=said, stderr=said)
        try:
            code = child.wait(max(0.0, terms.deadline - time.monotonic()))
        except subprocess.TimeoutExpired as late:
            raise OutOfTimeError from late
        finally:
            child.kill()
            child.wait()
    if code:
        lines = log.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise FailedError(next((line for line in lines if "error" in line.lower()), lines[-1] if lines else str(code)))
    return time.monotonic() - started


def _named(card: int) -> str:
    """What the system calls that card of those that this process sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[card] if visible else str(card)


def checked(assets: Path) -> Path:
    """A folder of teachers, data and extractors.

    Raises:
        UserError: it is none.
    """
    if not (assets / "teachers").is_dir():
        raise UserError(f"{assets} has no folder teachers: name the assets with --assets or FASTGEN_ASSETS")
    return assets.resolve()
