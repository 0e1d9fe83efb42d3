r"""Trains and measures the runs of a table, each at the same budget; a call that was cut off is made again.

    python -m benchmarks.trials objectives --only dmd2 'lcm*' --minutes 3.5 --at-once 4 --within 560 --out runs/trials

Leaves records/NAME.json and records/NAME.png; docs/results/runs/ has such files, of which `python docs/generate.py`
makes the pages of results.
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from fastgen.errors import UserError

from ..record import commit_here
from .conduct import Terms, checked, conduct
from .protocols import PROTOCOLS
from .table import Table, tables


def main(arguments: Sequence[str] | None = None) -> int:
    """Carries out what is asked for; 1 where a trial is left or failed."""
    told = _parser().parse_args(arguments)
    table = Table.read(told.table)
    trials = table.only(told.only)
    if told.list:
        print(*(f"{name}: {trial.config} {' '.join(trial.set)}" for name, trial in trials.items()), sep="\n")
        return 0
    terms = Terms(
        out=told.out.resolve(),
        assets=checked(told.assets),
        protocol=PROTOCOLS[table.protocol],
        minutes=told.minutes or table.minutes,
        deadline=time.monotonic() + told.within,
        cards=torch.cuda.device_count(),
        at_once=told.at_once,
        commit=told.commit or commit_here(),
        settings=tuple(told.set),
        measured=tuple(told.measured.split()),
    )
    found = conduct(trials, terms)
    print(*(f"{name}: {state}" for name, state in found.items()), sep="\n")
    return 0 if all(state.startswith("done") for state in found.values()) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trials", description=__doc__.splitlines()[0])
    parser.add_argument("table", help=f"{', '.join(tables())}, or a file")
    parser.add_argument("--out", type=Path, default=Path("runs/trials"))
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="names, or patterns such as 'dmd2*'")
    parser.add_argument("--minutes", type=float, help="of training of each (default: the table's)")
    parser.add_argument("--at-once", type=int, default=1, metavar="N", help="trials that share a card")
    parser.add_argument(
        "--within", type=float, default=math.inf, metavar="SECONDS", help="of all of it; the rest is left"
    )
    parser.add_argument("--assets", type=Path, default=Path(os.environ.get("FASTGEN_ASSETS", "assets")))
    parser.add_argument("--commit", help="of this code, where it is no checkout")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="overrides of every config")
    parser.add_argument(
        "--measured", default="", metavar="OPTIONS", help="of every evaluation, such as '--num-images 64'"
    )
    parser.add_argument("--list", action="store_true", help="say what the table has, and do nothing")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        sys.exit(f"benchmarks.trials: {error}")
