"""What every command shares: how it runs, how a user's mistake is said, and options that mean the same everywhere."""

import logging
import math
import os
import re
import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from time import sleep
from typing import NoReturn

import psutil

from .disk import explained
from .errors import AFTER_SIGNAL, LOG, ExitCode, UserError
from .limits import plain
from .stopping import Stopped, listening, stop_signal

LAST_S = 5.0  # for the threads of a command that failed to end
DTYPES = ("float32", "bfloat16", "float16")
MOST_LABELS = 10_000_000
_DEVICE = re.compile(r"auto|cpu|mps|(cuda|xpu)(:[0-9]{1,3})?", re.ASCII)
NUM = ("--num-images", "--num")  # torchrun takes --num for one of its own options


def guarded(run: Callable[[Namespace], int | None], options: Namespace, *, goes_on: str | None = None) -> int:
    """Run a command; a user's mistake becomes one paragraph on stderr, a stack trace only with --debug.

    Args:
        goes_on: flag with which the command goes on where a signal stopped it; None for the same command again.
    """
    hint = f"go on with\n  {again(goes_on)}\n"
    with listening(hint):
        return _guarded(run, options, hint)


def _guarded(run: Callable[[Namespace], int | None], options: Namespace, hint: str) -> int:
    try:
        with shown():
            code = run(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as error:
        stop = error if isinstance(error, Stopped) else Stopped(ExitCode.SIGINT - AFTER_SIGNAL)
        return _stopped(stop, hint)
    except UserError as error:
        if options.debug:
            raise
        return failed(error)
    except BrokenPipeError:  # whoever read the output, as `head` does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.CLOSED_PIPE
    except OSError as error:  # a full disk, a folder without permission
        if options.debug:
            raise
        return failed(UserError(explained(error)))
    except Exception as error:
        number = stop_signal()
        if options.debug or number is None:
            raise
        return _stopped(Stopped(number, f"in the middle of something ({type(error).__name__}: {error})"), hint)


def _stopped(stop: Stopped, hint: str) -> int:
    """Says, in the first of several processes, that a signal was heard and how to go on; the exit code of it."""
    if os.environ.get("RANK", "0") == "0":
        print(f"fastgen: {stop}; {hint}", end="", file=sys.stderr)
    return stop.exit_code


def again(flag: str | None) -> str:
    """The command line that this process, or the launcher of it and others, was started by, with a flag more."""
    words = ["fastgen", *sys.argv[1:]] if Path(sys.argv[0]).name == "fastgen" else sys.orig_argv
    if "RANK" in os.environ:
        launcher = psutil.Process().parent()
        line = [] if launcher is None else launcher.cmdline()
        words = line if line[-len(sys.argv[1:]) :] == sys.argv[1:] else words
    return shlex.join([*words, flag] if flag and flag not in words else words)


def leave(code: int) -> NoReturn:
    """Ends the process of a command, also where a thread of it waits for what will never come."""
    if code:
        Thread(target=_leave_later, args=(code,), daemon=True).start()
    sys.exit(code)


def _leave_later(code: int) -> None:
    sleep(LAST_S)
    os._exit(code)


@contextmanager
def shown() -> Iterator[None]:
    """Within, what the library says is on the terminal and nowhere else: warnings on stderr, the rest on stdout."""
    console, before = _Console(), (LOG.level, LOG.propagate)
    LOG.addHandler(console)
    LOG.setLevel(logging.INFO)
    LOG.propagate = False
    try:
        yield
    finally:
        LOG.removeHandler(console)
        LOG.setLevel(before[0])
        LOG.propagate = before[1]


class _Console(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            print(record.getMessage(), flush=True)
        else:
            print(f"fastgen: {record.levelname.lower()}: {record.getMessage()}", file=sys.stderr)


def failed(error: UserError) -> int:
    """Say a user's mistake on stderr; the exit code of it."""
    print(f"fastgen: error: {error}", file=sys.stderr)
    return error.exit_code


def add_stack(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Declare --base and --stack."""
    parser.add_argument("--base", metavar="PIPELINE", help="pipeline that a LoRA is put on (default: its teacher)")
    parser.add_argument(
        "--stack",
        action="append",
        type=stacked_file,
        default=[],
        metavar="FILE[=W]",
        help="LoRA in the teacher and its weight, if the export's notes do not say; may be repeated",
    )


def stacked_file(text: str) -> tuple[Path, float | None]:
    """A LoRA file and its weight, if any, from "FILE" or "FILE=W"."""
    name, equals, weight = text.rpartition("=")
    return (place(name), finite(weight)) if equals else (place(text), None)


def add_call(group: _ArgumentGroup) -> None:
    """Declare what a pipeline's call is told beside steps and guidance."""
    group.add_argument("--negative-prompt", type=prompt, metavar="TEXT", help="prompt that guidance leads away from")
    group.add_argument("--height", type=positive, metavar="PX", help="height (default: the student's own)")
    group.add_argument("--width", type=positive, metavar="PX", help="width (default: the student's own)")
    group.add_argument("--frames", type=positive, metavar="N", help="frames of a video (default: the student's own)")


def prompt(text: str) -> str:
    """Text without control characters."""
    try:
        return plain(text, "it")
    except UserError as error:
        raise ArgumentTypeError(str(error)) from error


def place(text: str) -> Path:
    """Where a file or folder is, or is to be."""
    try:
        held = os.fsencode(text)
    except UnicodeEncodeError:
        held = b"\0"
    if b"\0" in held:
        raise ArgumentTypeError(f"{text!r:.80} is no name that a file can have: it holds NUL, or half of a character")
    return Path(text)


def device(text: str) -> str:
    """A device that computes, by PyTorch's name for it, or auto."""
    if not _DEVICE.fullmatch(text):
        raise ArgumentTypeError(f"{text!r:.80} is not auto, cpu, cuda, cuda:1, mps or xpu")
    return text


def finite(text: str) -> float:
    """A number that is finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ArgumentTypeError(f"{text!r:.80} is no finite number")
    return value


def natural(text: str) -> int:
    """A seed that every torch generator accepts: 0 .. 2^62."""
    if _whole(text) is None:
        raise ArgumentTypeError(f"{text!r:.80} is not a whole number from 0 to 2^62")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not _whole(text):
        raise ArgumentTypeError(f"{text!r:.80} is not a whole number of at least 1")
    return int(text)


def gib(text: str) -> float:
    """GiB of memory: a number above 0."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e4:
        raise ArgumentTypeError(f"{text!r:.80} is no number of GiB above 0")
    return size


def port(text: str) -> int:
    """A port to listen on; 0 is a free one."""
    number = _whole(text)
    if number is None or number > 65535:
        raise ArgumentTypeError(f"{text!r:.80} is not a port from 0 to 65535")
    return number


def _whole(text: str) -> int | None:
    """The number from 0 to 2^62 that a text of digits is."""
    return number if text.isdecimal() and len(text) < 20 and (number := int(text)) <= 2**62 else None


def label_list(text: str) -> tuple[int, ...]:
    """Class labels from "0,1,2", "0-9" or a mixture such as "0-3,7"."""
    labels: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = _whole(first), _whole(last if dash else first)
        if low is None or high is None or not low <= high < MOST_LABELS:
            raise ArgumentTypeError(
                f"{part!r:.80} in {text!r:.80} is neither a label nor a range such as 0-9, all below {MOST_LABELS:,}"
            )
        labels += range(low, high + 1)
    return tuple(labels)
