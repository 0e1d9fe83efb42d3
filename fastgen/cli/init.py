"""Copy a shipped config, with its comments, to start from.

  fastgen init sdxl/dmd2_4step_lora               writes dmd2_4step_lora.yaml here
  fastgen init digits/dmd2_1step mine/run.yaml    and the config that trains its teacher beside it

`fastgen list configs` shows the names. A file that is already there is never replaced.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..config.shipped import copied, named


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen init`."""
    parser.add_argument("name", metavar="NAME", help="of a shipped config")
    parser.add_argument("file", metavar="FILE", type=Path, nargs="?", help="to write (default: NAME's last part, here)")


def run(args: Namespace) -> None:
    """Copy the config and say what to do with it."""
    written = copied(named(args.name), args.file)
    for file in written:
        print(f"wrote {file}")
    print(f"next: fastgen train --config {written[0]} --dry-run")
