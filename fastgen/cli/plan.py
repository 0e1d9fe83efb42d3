"""Count what a run would cost before it starts: memory by part, seconds of a cycle and of the run, on 1 to N cards.

  fastgen plan configs/sdxl/dmd2_4step_lora.yaml
  fastgen plan run.yaml train.batch=8 --gpus 8           for every number of cards from 1 to 8
  fastgen plan run.yaml --memory 24                      for a card of 24 GiB, and what would make the run fit

Nothing is trained and no weights are read: the networks are built from their configs alone, and their work is
counted. Where the run does not fit, the settings that would make it fit are named, each with what it saves. Seconds
are for kernels that are not compiled; `train.compile` makes the run faster. For a hub id, its configs must be in the
cache or the hub must be reachable.
"""

from argparse import ArgumentParser, Namespace

from ..command import gib, place, positive

CARDS = ("h100", "h200")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen plan`."""
    parser.add_argument("config", type=place, metavar="CONFIG", help="YAML file of the run, such as those in configs/")
    parser.add_argument(
        "--gpus", type=positive, default=1, metavar="N", help="largest number of cards to plan for (default: 1)"
    )
    parser.add_argument("--card", choices=CARDS, default="h100", help="card whose speed is assumed (default: h100)")
    parser.add_argument("--memory", type=gib, metavar="GiB", help="memory of your card, if it differs from that card's")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="a.b=value", help="settings to change, by dotted path"
    )


def run(args: Namespace) -> None:
    """Prints the costs of every stage.

    Raises:
        UserError: the config, or a teacher whose costs cannot be counted.
    """
    from ..config.yaml_file import load
    from ..distillation.checks import check_stages
    from ..distillation.costs import costs
    from ..planning.cards import CARDS as KNOWN

    config = load(args.config, args.overrides)
    check_stages(config)
    card = KNOWN[args.card] if args.memory is None else KNOWN[args.card].of(args.memory)
    lines = costs(
        config,
        lambda more: load(args.config, [*args.overrides, *more]),
        card=card,
        gpus=args.gpus,
        recipes=args.config.parent,
    )
    for line in lines:
        print(line, flush=True)
