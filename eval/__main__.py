"""`python -m eval`: the same as `fastgen eval`."""

import sys

from fastgen.command import guarded

from .cli import build_parser, run

sys.exit(guarded(run, build_parser().parse_args()))
