"""Encode a run's images and prompts before it trains, so that it needs neither the images nor their encoding.

  fastgen precompute configs/sdxl/dmd2_4step_lora.yaml
  torchrun --nproc-per-node 8 --no-python fastgen precompute run.yaml     each process with its share
  fastgen train --config run.yaml                                reads what is there

Samples of the images that the run draws (of mirrored ones by themselves) and the conditioning of its prompts go to
`cache`, in safetensors files that are named after what they were made with: the encoders' weights, the size, the
contents of the data. What is there already is not made again, so that an interrupted command goes on where it stopped.
"""

import os
from argparse import ArgumentParser, Namespace

from ..command import place


def add_arguments(parser: ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("config", type=place, metavar="CONFIG", help="YAML file of the run, see configs/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="settings to change, by dotted path")


def run(args: Namespace) -> None:
    """Fills the cache and says what is there.

    Raises:
        UserError: the config, or what `precompute` refuses.
    """
    from ..config.yaml_file import load
    from ..distillation.precompute import precompute
    from ..errors import say

    made = precompute(load(args.config, args.overrides), recipes=args.config.parent)
    if os.environ.get("RANK", "0") == "0":
        say(
            f"{made.folder}: {made.prompts:,} prompts and the samples of {made.images:,} images, {made.fresh:,} of "
            "them made now"
        )
