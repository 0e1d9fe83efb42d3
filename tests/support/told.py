"""Where a run, a sampling or an evaluation is told to stop: targets of `small_run.in_processes`."""

import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from fastgen.cli import main
from fastgen.command import guarded
from fastgen.config.schema import Config
from fastgen.distillation.distil import distil

PHASES = {  # phase -> what it calls, and at which of these calls it is told
    "loading": ("fastgen.distillation.distil:teacher_of", 1),
    "caching": ("fastgen.distillation.distil:encode", 1),
    "rehearsal": ("fastgen.distillation.distil:rehearse_export", 1),
    "pairs": ("fastgen.engine.pairs:_sampled", 1),
    "first step": ("fastgen.engine.stage:Stage._turn", 1),
    "compiling": ("torch._inductor.compile_fx:compile_fx", 1),
    "step": ("fastgen.engine.stage:Stage._turn", 2),
    "save": ("fastgen.engine.checkpoint:save", 1),
    "preview": ("fastgen.distillation.previews:Gallery.__call__", 1),
    "export": ("fastgen.distillation.release:export", 1),
    "verification": ("fastgen.export.verify:_ask_isolated", 1),
}


def told(phase: str, number: int, config: Config, out: Path) -> None:
    """A run that is told at the start of a phase, which takes a second; `out` gets when that was, and its words."""
    where, at = PHASES[phase]
    _tell(where, at, number, out)
    os.dup2(os.open(out.with_suffix(".said"), os.O_WRONLY | os.O_CREAT), 2)

    def run(_: Namespace) -> None:
        distil(config, recipes=config.out.parent)

    sys.exit(guarded(run, Namespace(debug=False), goes_on="--resume"))


def told_command(where: str, number: int, arguments: list[str], out: Path) -> None:
    """A command that is told when it calls something for the first time."""
    _tell(where, 1, number, out)
    os.dup2(os.open(out.with_suffix(".said"), os.O_WRONLY | os.O_CREAT), 2)
    sys.exit(main(arguments))


def _tell(where: str, at: int, number: int, out: Path) -> None:
    module, _, name = where.partition(":")
    place: Any = import_module(module)
    *outer, last = name.split(".")
    for part in outer:
        place = getattr(place, part)
    original: Callable[..., Any] = getattr(place, last)
    calls = []

    def patched(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            out.write_text(str(time.time()))
            os.kill(os.getpid(), number)
            time.sleep(1)
        return original(*arguments, **named)

    setattr(place, last, patched)
