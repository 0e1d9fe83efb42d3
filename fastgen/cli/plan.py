"""Say what a run costs before it is one: memory by part, seconds of a cycle and of the run, on 1 to N cards.

  fastgen plan configs/sdxl/dmd2_4step_lora.yaml
  fastgen plan run.yaml train.batch=8 --gpus 8           every number of cards up to eight
  fastgen plan run.yaml --memory 24                      a card of 24 GiB; what would make the run fit it

Nothing is trained and no weights are read: the roles are built of the configs alone, and their turns counted. Where
it does not fit, the settings that would make it fit are named, each with what it saves. Seconds are those of eager
kernels on the card; `train.compile` makes them fewer. A hub id needs its configs in the cache, or a network.
"""

from argparse import ArgumentParser, Namespace

from ..command import gib, place, positive

CARDS = ("h100", "h200")


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("config", type=place, metavar="CONFIG", help="YAML file of the run, see configs/")
    parser.add_argument("--gpus", type=positive, default=1, metavar="N", help="cards up to which several are told")
    parser.add_argument("--card", choices=CARDS, default="h100", help="whose speed is told (default: h100)")
    parser.add_argument("--memory", type=gib, metavar="GiB", help="of the card, where it is not that card's own")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings to change, by dotted path")


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
