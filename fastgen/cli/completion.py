"""Print a script that completes commands, options and their values in a shell.

eval "$(fastgen completion bash)"                                  in ~/.bashrc
fastgen completion zsh > "${fpath[1]}/_fastgen"
fastgen completion fish > ~/.config/fish/completions/fastgen.fish
"""

from argparse import ArgumentParser, Namespace

SHELLS = ("bash", "zsh", "fish")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen completion`."""
    parser.add_argument("shell", choices=SHELLS, help="shell that the script is for")


def run(args: Namespace) -> None:
    """Print the script."""
    import shtab

    from . import whole_parser

    print(shtab.complete(whole_parser(), args.shell))
