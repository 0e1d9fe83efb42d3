"""`python -m eval`: the same as `fastgen eval`."""

from fastgen.command import guarded, leave

from .cli import build_parser, run

leave(guarded(run, build_parser().parse_args(), goes_on="--overwrite"))
