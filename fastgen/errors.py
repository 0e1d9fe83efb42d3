"""Errors that a user can mend: one paragraph that names the value, the rule and the remedy."""

import sys


class UserError(Exception):
    """Something outside the code is wrong (a config, a file, an input). Shown without a stack trace."""

    exit_code = 2


class NonFiniteError(UserError):
    """A loss or a gradient is not finite; raised before any optimizer step."""

    exit_code = 4


class CheckpointError(UserError):
    """A checkpoint is damaged, incomplete or belongs to another run."""

    exit_code = 3


def warn(message: str) -> None:
    """Tells the user what is allowed but unwise, on stderr."""
    print(f"fastgen: warning: {message}", file=sys.stderr)
