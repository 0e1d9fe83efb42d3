"""Write a config to start from: for your pipeline and card, or a copy of one that comes with fastgen.

  fastgen init                                        asks what it needs to know
  fastgen init --pipeline sdxl --memory 24            your prompts.txt, 4 steps; writes sdxl_4step.yaml here
  fastgen init --pipeline my-finetune --memory 12 --images photos --steps 2 --prefer speed mine.yaml
  fastgen init digits/dmd2_1step mine/run.yaml        a copy, with the config that trains its teacher beside it

For a card, fastgen counts what several ways of training would allocate (`fastgen plan`), without weights and without
a GPU, and takes the first that fits. A pipeline is a folder, a hub id, or one of these, whose sizes are known without
their files: sd15, sdxl, sd3, flux, sana, qwen_image, z_image, ltx, wan. `fastgen list configs` shows the names of the
configs that come with fastgen. An existing file is never replaced.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..command import gib, place, positive
from ..config.shipped import copied, named, written_anew
from ..errors import UserError

PREFER = ("quality", "speed")
EXAMPLE = "fastgen init --pipeline sdxl --memory 24"
T = TypeVar("T")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen init`."""
    parser.add_argument("name", metavar="NAME", nargs="?", help="config to copy; with --pipeline, the FILE to write")
    parser.add_argument(
        "file", metavar="FILE", type=place, nargs="?", help="file to write (default: named after the run)"
    )
    wish = parser.add_argument_group("for a pipeline and a card")
    wish.add_argument("--pipeline", metavar="NAME|DIR|ID", help="one of the names above, a folder, or a hub id")
    wish.add_argument(
        "--memory", type=gib, metavar="GB", help="memory of the card (default: that of this machine's GPU)"
    )
    data = wish.add_mutually_exclusive_group()
    data.add_argument(
        "--prompts", type=place, metavar="FILE", help="text file with one prompt per line (default: prompts.txt)"
    )
    data.add_argument(
        "--images", type=place, metavar="DIR", help="folder of images, the caption of a.png in a.txt beside it"
    )
    wish.add_argument("--steps", type=counts, metavar="N,...", help="steps of the student (default: 4)")
    wish.add_argument("--prefer", choices=PREFER, help="speed trains on a quarter of the images")
    wish.add_argument(
        "--height", type=positive, metavar="PX", help="height of its pictures (default: the pipeline's own)"
    )
    wish.add_argument("--width", type=positive, metavar="PX", help="width, likewise")
    wish.add_argument("--frames", type=positive, metavar="N", help="frames of its videos, likewise")


def run(args: Namespace) -> None:
    """Write the config and say what to do with it.

    Raises:
        UserError: no such config or pipeline, nothing that fits, a file that is already there, or nobody to ask.
    """
    if args.pipeline is None and args.name is None:
        if not sys.stdin.isatty():
            raise UserError(f"there is no terminal to ask on: name a shipped config, or a pipeline, as in `{EXAMPLE}`")
        _ask(args)
    if args.pipeline is None:
        written = copied(named(args.name), args.file)
    elif args.name is not None and args.file is not None:
        raise UserError(f"--pipeline writes a config of its own: give one FILE, or leave out {args.name!r}")
    else:
        written = (_chosen(args),)
    for file in written:
        print(f"wrote {file}")
    print(f"next: fastgen train --config {written[0]} --dry-run")


def counts(text: str) -> tuple[int, ...]:
    """Step counts from "4" or "4,2,1"."""
    steps = tuple(map(positive, text.split(",")))
    if len(set(steps)) < len(steps):
        raise ArgumentTypeError(f"{text!r} names a count twice")
    return steps


def _chosen(args: Namespace) -> Path:
    from ..distillation.presets import Wish, choose

    size = {name: getattr(args, name) for name in ("height", "width", "frames") if getattr(args, name) is not None}
    wish = Wish(
        pipeline=args.pipeline,
        memory=args.memory if args.memory is not None else _memory_here(),
        data=args.images or args.prompts or Path("prompts.txt"),
        images=args.images is not None,
        steps=args.steps or (4,),
        prefer=args.prefer or "quality",
        size=size,
    )
    file = Path(args.name or f"{Path(wish.run).name}.yaml")
    file = file / f"{Path(wish.run).name}.yaml" if file.is_dir() else file
    written_anew({file: ""}, write=False)
    print(f"counting what {wish.teacher} needs on {wish.memory:g} GB")
    preset = choose(wish, said=lambda line: print(f"  {line}", flush=True))
    written_anew({file: preset.text})
    print(f"taken, as the fastest that fits: {preset.way.said}")
    return file


def _memory_here() -> float:
    """The memory of the first GPU in GiB, rounded as on its label."""
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"torch sees no GPU here: say how much memory the card has, as in `{EXAMPLE}`")
    return float(round(torch.cuda.get_device_properties(0).total_memory / 2**30))


def _ask(args: Namespace) -> None:
    """Fills in what was not given, by asking."""
    args.pipeline = _answer("pipeline (sdxl, flux, ..., a folder or a hub id)", str, "sdxl")
    if args.memory is None:
        args.memory = _answer("memory of the GPU in GB", gib, "24")
    if args.prompts is None and args.images is None:
        kind = _answer("do you have images with captions, or prompts only? (images, prompts)", _kind, "prompts")
        if kind == "images":
            args.images = _answer("folder of the images", Path, "images")
        else:
            args.prompts = _answer("file of prompts, one a line", Path, "prompts.txt")
    if args.steps is None:
        args.steps = _answer("steps of the student", counts, "4")
    if args.prefer is None:
        args.prefer = _answer("quality, or speed of training", _preference, "quality")


def _answer(question: str, read: Callable[[str], T], default: str) -> T:
    while True:
        try:
            return read(input(f"{question} [{default}]: ").strip() or default)
        except ArgumentTypeError as error:
            print(f"  {error}")
        except EOFError:
            raise UserError(f"nobody answered {question!r}: say it on the command line, as in `{EXAMPLE}`") from None


def _one_of(text: str, known: tuple[str, ...]) -> Any:
    if text not in known:
        raise ArgumentTypeError(f"{text!r:.40} is none of {', '.join(known)}")
    return text


def _kind(text: str) -> str:
    return str(_one_of(text, ("images", "prompts")))


def _preference(text: str) -> str:
    return str(_one_of(text, PREFER))
