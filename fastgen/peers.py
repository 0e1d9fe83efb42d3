"""How a process of a run ended, as the others hear of it."""

from dataclasses import dataclass

from .errors import ExitCode, PeerError, UserError
from .stopping import Stopped


@dataclass(frozen=True)
class Ending:
    """How a process ended, as it tells the others.

    Attributes:
        text: the error in words.
        exit_code: of the process, and so of all.
        signal: that stopped it; None for an error.
    """

    text: str
    exit_code: int
    signal: int | None = None

    @classmethod
    def of(cls, error: BaseException) -> "Ending":
        """An error's."""
        if isinstance(error, Stopped):
            return cls(str(error), error.exit_code, error.number)
        code = error.exit_code if isinstance(error, UserError) else ExitCode.FAULT
        return cls(f"{type(error).__name__}: {error}", code)

    def error(self, who: str) -> UserError | Stopped:
        """What it is to the others."""
        if self.signal is not None:
            return Stopped(self.signal)
        return PeerError(f"{who} stopped: {self.text}", self.exit_code)
