"""`python -m eval`: the same as `fastgen eval`."""

import sys

from fastgen.cli import guarded

from .cli import build_parser, run

sys.exit(guarded(run, build_parser().parse_args()))
