"""What every command shares: how it runs, how a user's mistake is said, and options that mean the same everywhere."""

import logging
import os
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _ArgumentGroup
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import LOG, UserError
from .limits import plain

INTERRUPTED = 130
"""The shell's exit code for Ctrl-C."""
CLOSED = 141
"""The shell's exit code for a closed pipe."""
DTYPES = ("float32", "bfloat16", "float16")
MOST_LABELS = 10_000_000
NUM = ("--num-images", "--num")  # torchrun takes --num for one of its own options


def guarded(run: Callable[[Namespace], int | None], options: Namespace) -> int:
    """Run a command; a user's mistake becomes one paragraph on stderr, a stack trace only with --debug."""
    try:
        with shown():
            code = run(options) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("fastgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if options.debug:
            raise
        return failed(error)
    except BrokenPipeError:  # whoever read the output, as `head` does, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED
    except OSError as error:  # a full disk, a folder without permission
        if options.debug:
            raise
        return failed(UserError(f"{error}. Use --debug to see where."))


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
    parser.add_argument("--base", metavar="PIPELINE", help="pipeline below a LoRA (default: its teacher)")
    parser.add_argument(
        "--stack",
        action="append",
        type=stacked_file,
        default=[],
        metavar="FILE[=W]",
        help="LoRA that the teacher was made with and its weight, where its notes cannot tell; may be repeated",
    )


def stacked_file(text: str) -> tuple[Path, float | None]:
    """A LoRA file and its weight, if any, from "FILE" or "FILE=W"."""
    name, equals, weight = text.rpartition("=")
    try:
        return (Path(name), float(weight)) if equals else (Path(text), None)
    except ValueError as error:
        raise ArgumentTypeError(f"{weight!r} in {text!r} is not a weight") from error


def add_call(group: _ArgumentGroup) -> None:
    """Declare what a pipeline's call is told beside steps and guidance."""
    group.add_argument("--negative-prompt", type=prompt, metavar="TEXT", help="what guidance leads away from")
    group.add_argument("--height", type=positive, metavar="PX", help="of the pictures (default: the student's own)")
    group.add_argument("--width", type=positive, metavar="PX", help="likewise")
    group.add_argument("--frames", type=positive, metavar="N", help="of a video (default: the student's own)")


def prompt(text: str) -> str:
    """Text without control characters."""
    try:
        return plain(text, "it")
    except UserError as error:
        raise ArgumentTypeError(str(error)) from error


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
