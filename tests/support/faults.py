"""What goes wrong in one of several processes of a run: targets of `small_run.in_processes`."""

import os
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_run import run_config

import fastgen.distillation.distil as distillation
from eval.session import Session
from fastgen.cli import main
from fastgen.command import guarded
from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.engine import checkpoint
from fastgen.engine import stage as loop
from fastgen.errors import UserError


def short(folder: Path, out: str, **changes: Any) -> Config:
    """Four cycles of kd on two processes, saved after the second, which miss each other after two seconds."""
    train = {"images": 8, "batch": 2, "micro_batch": 1, "ema": 0.9}
    return run_config(
        folder,
        out=folder / out,
        student={"steps": [1]},
        stages=[{"objective": {"name": "kd"}, "train": train}],
        checkpoints={"every": 4},
        timeouts={"process": 3},
        **changes,
    )


def carried_out(config: Config, resume: bool, fault: str | None) -> None:
    """A run as a command has it, in which something happens to the second process, or to the first one's disk."""
    rank = int(os.environ.get("RANK", "0"))
    if fault is not None:
        FAULTS[fault](rank)
    said = os.open(config.out.with_suffix(f".{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 2)

    def run(_: Namespace) -> None:
        distil(config, recipes=config.out.parent, resume=resume)

    sys.exit(guarded(run, Namespace(debug=False), goes_on="--resume"))


def evaluated(arguments: list[str], out: Path, happens: Callable[[Any], None]) -> None:
    """The command with these arguments, in which something happens where the second process first looks at images."""
    rank, see = int(os.environ["RANK"]), Session.see
    os.dup2(os.open(out.with_suffix(f".{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)

    def patched(self: Session, *told: Any) -> Any:
        if rank == 1:
            happens(self)
        return see(self, *told)

    Session.see = patched  # type: ignore[method-assign]
    sys.exit(main([*arguments, "--out", str(out)]))


def in_cycle(number: int, happens: Callable[[loop.Stage], None], *, of: int = 1) -> Callable[[int], None]:
    """At the start of a cycle, in the process of that rank."""

    def patch(rank: int) -> None:
        cycle = loop.Stage.cycle

        def patched(self: loop.Stage) -> dict[str, float]:
            if self.position.cycle == number and rank == of:
                happens(self)
            return cycle(self)

        loop.Stage.cycle = patched  # type: ignore[method-assign]

    return patch


def killed(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(_: Any) -> None:
    """As by SIGSTOP; ended after a while, so that whoever waits for it can go on."""
    parent = os.getpid()
    if os.fork() == 0:
        time.sleep(20)
        os.kill(parent, signal.SIGKILL)
        os._exit(0)
    os.kill(parent, signal.SIGSTOP)


def told(_: Any) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def bad_image(_: Any) -> None:
    raise UserError("image 7.png cannot be read")


def bug(_: loop.Stage) -> None:
    raise ZeroDivisionError("a bug")


def poisoned(stage: loop.Stage) -> None:
    next(stage.roles["generator"].parameters()).data.fill_(torch.nan)


def told_while_loading(rank: int) -> None:
    """The second process hears a signal where nothing is to be saved, and the first one waits for it."""
    encode = distillation.encode

    def patched(*arguments: Any) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        encode(*arguments)

    distillation.encode = patched


def full_disk(rank: int) -> None:
    if rank == 0:

        def full(folder: Path, needed: int) -> None:
            if "00000008" in str(folder):
                raise OSError(28, "No space left on device")

        checkpoint._require_space = full


FAULTS: dict[str, Callable[[int], None]] = {
    "killed": in_cycle(3, killed),
    "the first killed": in_cycle(3, killed, of=0),
    "stopped": in_cycle(3, stopped),
    "the first stopped": in_cycle(3, stopped, of=0),
    "told": in_cycle(2, told),
    "told while loading": told_while_loading,
    "bad image": in_cycle(3, bad_image),
    "bug": in_cycle(3, bug),
    "not a number": in_cycle(3, poisoned),
    "full disk": full_disk,
}
