"""What a user is told. Errors that can be mended are one paragraph that names the value, the rule and the remedy.

Everything else goes to the logger `fastgen`: commands show it, a program that imports fastgen decides itself.
"""

import logging
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from enum import IntEnum

LOG = logging.getLogger("fastgen")

AFTER_SIGNAL = 128
"""What shells add to the number of the signal that ended a process."""
OUT_OF_MEMORY = (
    "OutOfMemoryError",
    "MemoryError",
    "DefaultCPUAllocator",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What errors of Python and PyTorch hold, in their kind or their message, where memory ran out."""


class ExitCode(IntEnum):
    """How a command ends; `docs/reliability.md` says what each one means."""

    DONE = 0
    FAULT = 1
    MISTAKE = 2
    CHECKPOINT = 3
    NOT_FINITE = 4
    UNVERIFIED = 5
    SILENT = 6
    SIGINT = 130
    SIGUSR1 = 138
    CLOSED_PIPE = 141
    SIGTERM = 143


class UserError(Exception):
    """Something outside the code is wrong (a config, a file, an input). Shown without a stack trace."""

    exit_code: int = ExitCode.MISTAKE


class TrainingError(UserError):
    """A training broke down; the last checkpoint is intact."""

    exit_code = ExitCode.NOT_FINITE


class NonFiniteError(TrainingError):
    """A loss or a gradient is not finite; raised before any optimizer step."""


class SpikeError(TrainingError):
    """A loss or a gradient lies far above those before, and the run is to stop there; raised before any step."""


class CheckpointError(UserError):
    """A checkpoint is damaged, incomplete or belongs to another run."""

    exit_code = ExitCode.CHECKPOINT


class VerificationError(UserError):
    """Training is over and its exports are written, but one of them does not sample as it was trained."""

    exit_code = ExitCode.UNVERIFIED


class SilentError(UserError):
    """Something that was waited for does not answer: a data source, a decoder, another process."""

    exit_code = ExitCode.SILENT


class PeerError(UserError):
    """Another process of this run stopped, by this exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class NoRoomError(UserError):
    """A verification needs more memory than there is.

    Args:
        reason: what the device or the system said.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"an export cannot be verified here, which needs more memory than there is ({reason}): free some, or run "
            "`fastgen verify` on it on a larger machine"
        )


class NotInPartsError(NoRoomError):
    """A GPU has no room for the whole that is to be verified, and it cannot be there in parts."""


class UncountedError(UserError):
    """The costs of a run cannot be counted without its teacher's weights; the run itself may start."""


class NoMemoryError(UserError):
    """A run needs more memory than there is.

    Args:
        doing: what it was doing, as in "training cycle 3 of stage 'dmd2'".
        reason: what the device or the system said.
        stage: index of the stage that it is in.
        remedy: what would help.
    """

    def __init__(self, doing: str, reason: str, stage: int, remedy: str) -> None:
        self.doing, self.reason, self.stage = doing, reason, stage
        super().__init__(f"memory ran out in {doing} ({reason}). Nothing on disk is lost. {remedy}")


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was too little memory."""
    said = f"{type(error).__name__}: {error}"
    return isinstance(error, RuntimeError | MemoryError) and shortage(said) is not None


def shortage(said: str) -> str | None:
    """The first of these lines that says that there was too little memory."""
    return next((line for line in said.splitlines() if any(sign in line for sign in OUT_OF_MEMORY)), None)


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "", most: int = 1) -> str:
    """The end of a sentence about a name that is not known.

    Args:
        name: what was written.
        known: what could have been meant.
        otherwise: the end of the sentence where nothing known is near.
        most: names to suggest.

    Returns:
        "did you mean A?" or "did you mean A or B?", nearest first.
    """
    near = get_close_matches(name, list(known), n=most)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


def first_few(items: Sequence[str], most: int, *, between: str = ", ") -> str:
    """The first `most` of some items as part of a sentence, and how many more there are."""
    more = len(items) - most
    return between.join(items[:most]) + (f" and {more} more" if more > 0 else "")


def warn(message: str) -> None:
    """Tells the user what is allowed but unwise."""
    LOG.warning(message)


def say(message: str) -> None:
    """Tells the user what was done."""
    LOG.info(message)
