"""Encode a run's images and prompts in advance, so that training reads no images and encodes nothing.

  fastgen precompute configs/sdxl/dmd2_4step_lora.yaml
  torchrun --nproc-per-node 8 --no-python fastgen precompute run.yaml     on 8 GPUs, each with its share
  fastgen train --config run.yaml                                uses what was encoded

The latents of the images that the run draws (mirrored ones separately) and the embeddings of its prompts go to the
config's `cache`, in safetensors files named after what they were made from: the encoders' weights, the size, the
contents of the data. What is there already is not made again, so an interrupted command continues where it stopped.
"""

import os
from argparse import ArgumentParser, Namespace

from ..command import place


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen precompute`."""
    parser.add_argument("config", type=place, metavar="CONFIG", help="YAML file of the run, such as those in configs/")
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="a.b=value", help="settings to change, by dotted path"
    )


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
