"""Draw images from a student, or from any other stock Diffusers pipeline.

  fastgen sample out/student --num 64
  fastgen sample out/student --labels 0-9 --steps 2 --seed 100 --out digits
  fastgen sample owner/text-to-image --prompt "a red fox" --prompt "a blue jay" --num 8 --guidance 4

Image i uses the seed SEED + i and does not depend on the batch size. The output folder gets one lossless PNG
per image, a grid.png of the first 100, and samples.json with the seed, label or prompt of each image.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path

from ..errors import UserError

DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the options of `fastgen sample`."""
    source = parser.add_argument_group("what to sample")
    source.add_argument("pipeline", nargs="?", help="a stock pipeline folder (model_index.json) or a hub id")
    source.add_argument("--student", "--model", metavar="PIPELINE", help="the same, as an option")
    source.add_argument(
        "--num", type=positive, metavar="N", help="images; labels and prompts are cycled (default: one of each, or 16)"
    )
    source.add_argument("--seed", type=natural, default=0, metavar="S", help="image i uses S + i (default 0)")
    source.add_argument(
        "--labels",
        type=label_list,
        metavar="LIST",
        help="classes such as 0,1,2 or 0-9 (default: every real class in turn)",
    )
    source.add_argument("--prompt", action="append", metavar="TEXT", help="may be repeated")
    source.add_argument(
        "--prompts", type=Path, metavar="FILE", help="text file: line i is prompt i, an empty line the empty prompt"
    )
    how = parser.add_argument_group("how to sample")
    how.add_argument("--steps", type=positive, metavar="N", help="sampler steps (default: the student's first)")
    how.add_argument("--guidance", type=float, metavar="W", help="uncond + W (cond - uncond); 1 is none")
    how.add_argument("--batch-size", type=positive, default=16, metavar="B", help="images at once (default 16)")
    how.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 (default auto)")
    how.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default float32)")
    output = parser.add_argument_group("where to")
    output.add_argument("--out", type=Path, default=Path("samples"), metavar="DIR", help="default: samples")
    output.add_argument("--overwrite", action="store_true", help="replace files of the same name in DIR")


def natural(text: str) -> int:
    """A seed that every torch generator accepts: 0 .. 2^62."""
    if not text.isdecimal() or int(text) > 2**62:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^62")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def label_list(text: str) -> tuple[int, ...]:
    """Class labels from "0,1,2", "0-9" or a mixture such as "0-3,7"."""
    labels: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ArgumentTypeError(f"{part!r} in {text!r} is neither a label nor a range such as 0-9")
        labels += range(int(first), int(last if dash else first) + 1)
    return tuple(labels)


def run(args: Namespace) -> None:
    """Draw the images and say where they are."""
    from ..sampling.gallery import Order, fill

    order = Order(
        pipeline=_pipeline(args),
        out=args.out,
        num=args.num,
        seed=args.seed,
        labels=args.labels,
        prompts=_prompts(args),
        steps=args.steps,
        guidance=args.guidance,
        batch_size=args.batch_size,
        device=args.device,
        dtype=args.dtype,
        overwrite=args.overwrite,
    )
    record = fill(order, warn=_warn)
    print(f"{len(record.images)} images, a grid and their record are in {args.out}")


def _warn(message: str) -> None:
    print(f"fastgen: warning: {message}", file=sys.stderr)


def _pipeline(args: Namespace) -> str:
    named = [name for name in (args.pipeline, args.student) if name is not None]
    if len(named) != 1:
        raise UserError(
            f"one pipeline is sampled at a time, and {len(named)} were named. Give a folder or hub id, as in "
            "`fastgen sample out/student` or `fastgen sample --student out/student`."
        )
    return str(named[0])


def _prompts(args: Namespace) -> tuple[str, ...] | None:
    from ..data.prompts import numbered_prompts

    listed = numbered_prompts(args.prompts) if args.prompts else ()
    return (*(args.prompt or ()), *listed) or None
