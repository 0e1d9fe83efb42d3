"""`python -m eval`: the same as `fastgen eval`."""

from fastgen.command import guarded, leave
from fastgen.redaction import private

from .cli import build_parser, run

with private():
    code = guarded(run, build_parser().parse_args(), goes_on="--overwrite")
leave(code)
