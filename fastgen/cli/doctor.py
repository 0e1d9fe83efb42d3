"""Examine this machine: packages, kernels, GPUs, memory, disks, the hub; and say whether a run could start.

  fastgen doctor
  fastgen doctor --json               the same, for programs
  fastgen doctor --out /data/runs     where runs will be written

The exit code is 0 where a run could start here and 2 where it could not. A missing GPU is no fault: small runs
train on the CPU. It says whether you are logged in to the hub, and never shows the token.
"""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..command import place
from ..errors import ExitCode


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--out",
        type=place,
        default=Path("runs"),
        metavar="DIR",
        help="folder in which runs will be written (default: runs)",
    )


def run(args: Namespace) -> int:
    """Print what was found; 0 where a run could start here."""
    from ..distillation.machine import examined

    findings = list(examined(args.out))
    problems = [finding.problem for finding in findings if finding.problem is not None]
    if args.json:
        sections: dict[str, dict[str, str]] = {}
        for finding in findings:
            sections.setdefault(finding.section, {})[finding.name] = finding.value
        print(json.dumps({**sections, "problems": problems, "ready": not problems}, indent=2))
    else:
        section = ""
        for finding in findings:
            if finding.section != section:
                section = finding.section
                print(section)
            print(f"  {finding.name:<22}{finding.value}{' <- ' + finding.problem if finding.problem else ''}")
        print(f"{len(problems)} in the way of a run" if problems else "a run could start here")
    return ExitCode.MISTAKE if problems else ExitCode.DONE
