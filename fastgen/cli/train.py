"""Distil a teacher pipeline into a student of a few steps, or pretrain a teacher.

A run is one YAML file; any of its settings can be changed after it, by dotted path:

    fastgen train --config configs/digits/dmd2_1step.yaml
    fastgen train --config configs/digits/dmd2_1step.yaml out=runs/mine stages.1.objective.guidance=1.5
    fastgen train --config configs/digits/dmd2_1step.yaml --dry-run     show what would be done; write nothing
    fastgen train --config configs/digits/dmd2_1step.yaml --resume      continue after an interruption
    fastgen train --config configs/digits/dmd2_1step.yaml --find-batch  find the largest micro batch that fits

OUT is the config's `out`. The student is written to OUT/student, a folder that plain Diffusers opens by
DiffusionPipeline.from_pretrained.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..command import place
from ..errors import UncountedError, UserError

if TYPE_CHECKING:
    from ..config.schema import Config


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen train`."""
    parser.add_argument("--config", type=place, required=True, help="YAML file of the run, such as those in configs/")
    parser.add_argument("--resume", action="store_true", help="continue from the newest valid checkpoint in OUT")
    parser.add_argument(
        "--allow-changed",
        action="append",
        choices=("teacher", "init", "network", "data", "pairs"),
        default=[],
        help="with --resume: accept that this has changed since the checkpoint was written; may be repeated",
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="train although a run on another host left OUT locked, because you know that it has ended",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the resolved config, the plan and every reason why the run could not start; write nothing",
    )
    parser.add_argument(
        "--find-batch",
        action="store_true",
        help="find out which train.micro_batch fits this device, print it, and train nothing",
    )
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="a.b=value", help="settings to change, by dotted path"
    )


def run(args: Namespace) -> int:
    """Trains, or says what would be done; returns the exit status.

    Raises:
        UserError: the config, or what `distil` refuses.
    """
    from ..config.yaml_file import dump, load

    config = load(args.config, args.overrides)
    if args.dry_run:
        from ..distillation.checks import check_stages
        from ..distillation.foreseen import foreseen
        from ..distillation.plan import plan
        from ..distillation.preflight import refusals
        from ..distillation.several import runs_of

        check_stages(config)
        print(dump(config))
        runs = runs_of(config)
        if len(runs) > 1:
            print(f"{len(runs)} students, trained one after the other; each of them:")
        print(plan(runs[0], recipes=args.config.parent))
        later = [line for run in runs for line in foreseen(run, recipes=args.config.parent)]
        later = later or list(_print_costs(config, args))
        now = (line for run in runs for line in refusals(run, recipes=args.config.parent, resume=args.resume))
        if found := list(dict.fromkeys([*now, *later])):
            raise UserError("\n  ".join(["the run would be refused here:", *found]))
        return 0
    if args.find_batch:
        from ..distillation.trials import find_batches

        for line in find_batches(config, recipes=args.config.parent):
            print(line, flush=True)
        return 0
    from ..distillation.distil import distil

    distil(
        config,
        recipes=args.config.parent,
        resume=args.resume,
        allow_changed=args.allow_changed,
        take_over=args.take_over,
    )
    return 0


def _print_costs(config: "Config", args: Namespace) -> Iterator[str]:
    """Prints the costs as `fastgen plan` does; where they cannot be counted, why, which does not stop the run.

    Yields why the run would be refused, where its roles cannot be built.
    """
    from ..config.yaml_file import load
    from ..distillation.costs import costs
    from ..planning.cards import H100

    def changed(more: Sequence[str]) -> "Config":
        return load(args.config, [*args.overrides, *more])

    try:
        for line in costs(config, changed, card=H100, gpus=1, recipes=args.config.parent):
            print(line)
    except UncountedError as error:
        print(f"costs are not counted: {error}")
    except UserError as error:
        yield str(error)
