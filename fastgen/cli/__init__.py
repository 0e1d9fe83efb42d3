"""The command line: `fastgen train | sample | eval | verify`. A command's module is imported when it is asked for."""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module, metadata
from types import ModuleType

from ..errors import UserError

INTERRUPTED = 130  # the shell's exit code for Ctrl-C


@dataclass(frozen=True)
class Command:
    """Where a command lives, and what it is for."""

    module: str
    summary: str


COMMANDS: dict[str, Command] = {
    "train": Command("fastgen.cli.train", "distil a teacher pipeline into a student of a few steps"),
    "sample": Command("fastgen.cli.sample", "draw images from a student or any other stock pipeline"),
    "eval": Command("eval.cli", "measure a student beside its teacher"),
    "verify": Command("fastgen.cli.verify", "check that an export samples as it was trained"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 130 when interrupted, else that of the UserError."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"fastgen {metadata.version('fastgen')}")
        return 0
    if name not in COMMANDS:
        return _fail(_unknown(name))
    module = import_module(COMMANDS[name].module)
    options = _parser(name, module).parse_args(arguments[1:])
    return guarded(module.run, options)


def guarded(run: Callable[[Namespace], int | None], options: Namespace) -> int:
    """Run a command; a user's mistake becomes one paragraph on stderr, a stack trace only with --debug."""
    try:
        return run(options) or 0
    except KeyboardInterrupt:
        print("fastgen: interrupted", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        if options.debug:
            raise
        return _fail(error)
    except OSError as error:  # a full disk, a folder without permission
        if options.debug:
            raise
        return _fail(UserError(f"{error}. Use --debug to see where."))


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
    close = get_close_matches(name, COMMANDS, n=1)
    hint = f"Did you mean `fastgen {close[0]}`?" if close else f"The commands are {', '.join(COMMANDS)}."
    return UserError(f"there is no command {name!r}. {hint}")


def _fail(error: UserError) -> int:
    print(f"fastgen: error: {error}", file=sys.stderr)
    return error.exit_code
