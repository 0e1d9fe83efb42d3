"""Whole runs in each of several processes; targets of `small_run.in_processes`."""

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from accelerate import PartialState
from small_run import parameters, run_config

import fastgen.distillation.distil as distillation
from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.engine import stage as loop
from fastgen.errors import UserError


def fail_on_the_second(config: Config) -> None:
    """In one of two processes: a run whose second process breaks off in its second cycle."""
    cycle = loop.Stage.cycle

    def cycle_or_fail(self: loop.Stage) -> dict[str, float]:
        if os.environ["RANK"] == "1" and self.position.cycle == 1:
            raise UserError("an image of this disk cannot be read")
        return cycle(self)

    loop.Stage.cycle = cycle_or_fail  # type: ignore[method-assign]
    distil(config, recipes=config.out.parent)


def run_with_recipe(folder: Path) -> None:
    """In one of several processes: distils a teacher that does not exist yet."""
    teacher = {"path": str(folder / "teacher"), "recipe": "teacher.yaml"}
    stages = [{"objective": {"name": "dmd2", "ratio": 1}, "train": {"images": 4, "batch": 2}}]
    distil(run_config(folder, teacher=teacher, stages=stages), recipes=folder)


def run_with_a_slow_export(folder: Path) -> None:
    """In one of several processes: the same, where an export takes longer than the group of processes waits."""
    PartialState(cpu=True, timeout=timedelta(seconds=15))
    release = distillation.release

    def slow(*args: Any) -> None:
        time.sleep(20)
        release(*args)

    distillation.release = slow
    run_with_recipe(folder)


def resume_with_disks_of_their_own(config: Config, disks: Sequence[Path]) -> None:
    """In one of several processes, of which the first alone has the run on its disk."""
    rank = int(os.environ["RANK"])
    cycle, place = loop.Stage.cycle, disks[rank]

    def noted(self: loop.Stage) -> dict[str, float]:
        place.mkdir(exist_ok=True)
        with (place / "cycles").open("a") as file:
            file.write(f"{self.position.cycle} {parameters(self, 'generator').double().sum().item():.9f}\n")
        return cycle(self)

    loop.Stage.cycle = noted  # type: ignore[method-assign]
    distil(config.model_copy(update={"out": place}), recipes=place, resume=True)
