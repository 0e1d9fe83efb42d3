"""Prove an objective: closed forms between Gaussians, gradient routing, convergence on a two-dimensional mixture.

  fastgen prove dmd2
  fastgen prove mine.py                       the only objective in a file of your own
  fastgen prove mine.py:Mine --process flow   one of several, on one process: faster
  fastgen prove mine.py --quick               only closed forms and routing: seconds

`fastgen list objectives` shows the names. A file is run as Python code, as any import is; every setting of its
objective needs a default. Guidance is set to 1, so that the student's target is the data. One line per check:

  gaussians    on exact scores the generator's gradient lowers the KL divergence to the data, and is zero at the data
  routing      the gradients of a turn reach its roles and no others, and it reads what `needs` declares
  convergence  a small student comes within a quarter of the distance of its teacher after as many steps

The exit code is 1 if a check fails. A check that does not apply to an objective says so, and does not fail.
"""

from argparse import ArgumentParser, Namespace

PROCESSES = ("vp", "flow", "edm", "trig")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen prove`."""
    parser.add_argument("objective", metavar="NAME|FILE.py[:Class]", help="what to prove")
    parser.add_argument(
        "--process",
        nargs="+",
        choices=PROCESSES,
        default=list(PROCESSES),
        help="noise processes: variance preserving, rectified flow, EDM, TrigFlow (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="skip the convergence check, which takes most of the time")


def run(args: Namespace) -> int:
    """Print every check as it is made; 1 where one fails."""
    import torch  # slow to import, and --help needs none of it

    from ..proofs.prove import found, proved, told

    torch.set_num_threads(1)
    objective, recipe = found(args.objective)
    print(told(objective, type(objective)()))
    failed = 0
    for check in proved(objective, recipe, args.process, quick=args.quick):
        failed += not check.holds
        print(check, flush=True)
    print(f"{failed} failed" if failed else "all hold")
    return 1 if failed else 0
