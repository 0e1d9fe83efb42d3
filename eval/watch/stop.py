"""A run that is asked to stop, as by Ctrl-C: it saves at the end of its cycle, and `--resume` goes on."""

import os
import platform
import signal

from fastgen.errors import UserError
from fastgen.lock import is_held_by

from .files import LOCK, RunFiles


def stop(run: RunFiles) -> None:
    """Sends SIGTERM to the process that holds the run's lock, and to no other.

    Raises:
        UserError: nobody holds it, or a process of another host or user does.
    """
    holder = run.holder
    if holder is None:
        raise UserError(f"no process is writing {run.folder}: there is nothing to stop")
    if holder.host != platform.node():
        raise UserError(
            f"{run.folder} is written by {holder}, and this is {platform.node()}: send it SIGTERM there, and it saves"
        )
    if not is_held_by(holder, run.folder / LOCK):
        raise UserError(f"{holder} is not known to write {run.folder}: it may be another user's, and is left alone")
    try:
        os.kill(holder.pid, signal.SIGTERM)
    except OSError as error:
        raise UserError(f"{holder} could not be asked to stop: {error.strerror}") from error
