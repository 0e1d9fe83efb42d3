"""The command line, `fastgen COMMAND`. A command's module is imported when it is asked for."""

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from types import ModuleType
from typing import NoReturn

from ..command import failed, guarded, leave
from ..errors import UserError, did_you_mean
from ..redaction import private


@dataclass(frozen=True)
class Command:
    """Where a command lives, what it is for, and the flag with which it goes on after a signal."""

    module: str
    summary: str
    goes_on: str | None = None


COMMANDS: dict[str, Command] = {
    "train": Command("fastgen.cli.train", "distil a teacher pipeline into a student of a few steps", "--resume"),
    "watch": Command(
        "fastgen.cli.watch", "show a run as a page on this machine: curves, pictures, log, a button to stop it"
    ),
    "plan": Command(
        "fastgen.cli.plan", "count what a run would cost: memory by part, seconds, and what would make it fit"
    ),
    "precompute": Command("fastgen.cli.precompute", "encode a run's images and prompts in advance, on all GPUs"),
    "sample": Command("fastgen.cli.sample", "draw images from a student or any other stock pipeline", "--overwrite"),
    "demo": Command("fastgen.cli.demo", "try a student out in the browser, beside its teacher, with their times"),
    "eval": Command(
        "eval.cli", "measure a student beside its teacher: FID, CLIP score, diversity and more", "--overwrite"
    ),
    "verify": Command("fastgen.cli.verify", "check that an exported student samples as it was trained"),
    "card": Command("eval.card", "complete a student's model card: figures, pictures, settings"),
    "prove": Command("fastgen.cli.prove", "prove an objective, also one in a file of your own"),
    "list": Command("fastgen.cli.listing", "list objectives, sources of data, or the configs that come with fastgen"),
    "init": Command(
        "fastgen.cli.init",
        "write a config to start from: for your pipeline and card, or a copy of one that comes with fastgen",
    ),
    "doctor": Command("fastgen.cli.doctor", "examine this machine, and say whether a run could start on it"),
    "completion": Command("fastgen.cli.completion", "print a script by which bash, zsh or fish complete commands"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code, one of `ExitCode`."""
    os.environ.setdefault("TQDM_DELAY", "1")  # seconds; what is over sooner, as loading a small pipeline, shows no bar
    with private():
        return _main(list(sys.argv[1:] if argv is None else argv))


def _main(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"fastgen {metadata.version('fastgen')}")
        return 0
    if name not in COMMANDS:
        return failed(_unknown(name))
    module = import_module(COMMANDS[name].module)
    options = _parser(name, module).parse_intermixed_args(arguments[1:])
    return guarded(module.run, options, goes_on=COMMANDS[name].goes_on)


def entry() -> NoReturn:
    """`main` as the whole of a process."""
    leave(main())


def _parser(name: str, module: ModuleType) -> ArgumentParser:
    if name == "eval":  # also run as `python -m eval`, so it brings a parser of its own
        parser: ArgumentParser = module.build_parser()
        parser.prog = "fastgen eval"
        return parser
    parser = ArgumentParser(
        prog=f"fastgen {name}",
        description=module.__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show stack traces")
    return parser


def whole_parser() -> ArgumentParser:
    """All commands as the subcommands of one parser, which no command is run by: for completion."""
    parser = ArgumentParser(prog="fastgen", description="Distil any Diffusers pipeline")
    parser.add_argument("--version", action="store_true", help="print it")
    commands = parser.add_subparsers()
    for name, command in COMMANDS.items():
        own = _parser(name, import_module(command.module))
        commands.add_parser(name, help=command.summary, parents=[own], conflict_handler="resolve")
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: fastgen COMMAND [options]",
            "",
            "Distil any Diffusers pipeline into a stock pipeline that samples in 1-4 steps.",
            "",
            *lines,
            "",
            "`fastgen COMMAND --help` explains the options of a command.",
        ]
    )


def _unknown(name: str) -> UserError:
    hint = did_you_mean(name, COMMANDS, otherwise=f"known: {', '.join(COMMANDS)}")
    return UserError(f"there is no command {name!r}; {hint}")
