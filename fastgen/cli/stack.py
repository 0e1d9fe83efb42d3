"""What a LoRA student lies on, as options of every command that opens one."""

from argparse import ArgumentParser, ArgumentTypeError, _ArgumentGroup
from pathlib import Path


def add_stack(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Declare --base and --stack."""
    parser.add_argument("--base", metavar="PIPELINE", help="pipeline below a LoRA (default: its teacher)")
    parser.add_argument(
        "--stack",
        action="append",
        type=stacked_file,
        default=[],
        metavar="FILE[=W]",
        help="LoRA that the teacher was made with and its weight, where its notes cannot tell; may be repeated",
    )


def stacked_file(text: str) -> tuple[Path, float | None]:
    """A LoRA file and its weight, if any, from "FILE" or "FILE=W"."""
    name, equals, weight = text.rpartition("=")
    try:
        return (Path(name), float(weight)) if equals else (Path(text), None)
    except ValueError as error:
        raise ArgumentTypeError(f"{weight!r} in {text!r} is not a weight") from error
