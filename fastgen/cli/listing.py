"""List what a config can name, one per line.

  fastgen list objectives    with what each needs, and its paper
  fastgen list sources       of training data, with their settings
  fastgen list configs       that come with fastgen; `fastgen init NAME` copies one

Those that an installed package adds are listed with the package's name.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator

from ..config.shipped import shipped

LISTED = ("objectives", "sources", "configs")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen list`."""
    parser.add_argument("what", choices=LISTED, help="what to list")


def run(args: Namespace) -> None:
    """Print the lines, names in one column."""
    print("\n".join(_aligned(list(_rows(args.what)))))


def _rows(what: str) -> Iterable[tuple[str, ...]]:
    if what == "configs":
        return [(config.name, config.summary) for config in shipped().values()]
    from .listed import objectives, sources  # slow to import, and configs need none of it

    return objectives() if what == "objectives" else sources()


def _aligned(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
