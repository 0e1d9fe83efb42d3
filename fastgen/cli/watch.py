"""Serve the page of a run, while it trains and afterwards.

  fastgen watch runs/digits/dmd2_1step
  fastgen watch runs/digits/dmd2_1step --port 8765     the same address each time, except for its key

The page has the run's curves, the student's pictures beside the teacher's, its plan and the end of its log, and a
button that stops the run once it has saved. It is served on this machine only (127.0.0.1); to see it from another
one, use `ssh -L 8765:127.0.0.1:8765 HOST`. Ctrl-C ends the page, never the run.
"""

from argparse import ArgumentParser, Namespace

from ..command import place, port


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen watch`."""
    parser.add_argument("run", type=place, metavar="RUN", help="folder of a run: the `out` of its config")
    parser.add_argument("--port", type=port, default=0, metavar="N", help="port on 127.0.0.1 (default: a free one)")


def run(args: Namespace) -> None:
    """Serves until it is stopped."""
    from eval.watch.server import Watcher

    with Watcher(args.run, args.port) as watcher:
        print(f"{args.run} is at {watcher.address}\nCtrl-C ends the page, and not the run", flush=True)
        try:
            watcher.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            print("not served any more", flush=True)
