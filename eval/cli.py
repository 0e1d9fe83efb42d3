"""Measure a student beside its teacher, on one protocol.

Every row of the report is one image set: the real images, the teacher, the student at each step count. All
generated rows have the same number of images and the same seeds, because the Frechet distance is biased upwards
by about 1 / N: figures of different N, extractors or resizing must not be compared.
"""

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from fastgen.cli.sample import DTYPES, natural, positive

from .options import Options

_EXAMPLES = """\
examples:
  a student of 1 and 4 steps beside its teacher, against a folder of real images:
    %(prog)s --student out/student --steps 1,4 --teacher my/teacher --teacher-steps 50,4,1 \\
        --reference real/ --extractor my/vision-model --out report

  an extractor that does not say how its images are made (no preprocessor_config.json):
    %(prog)s --student out/student --reference train.parquet --extractor my/resnet \\
        --extractor-size 96 --extractor-range -1 1

  images that are already there, and statistics computed once:
    %(prog)s --reference train.parquet --extractor my/vision-model --save-stats train.npz
    %(prog)s --student samples/ --reference train.npz --real-images train.parquet --extractor my/vision-model

how to read the table:
  frechet   distance of feature distributions to the reference; lower is better. At small N it is mostly bias.
  accuracy  share of images that the extractor's own classifier reads as the class that was asked for. Above the
            real images' own figure means easy, not good: variety was lost.
  nyquist   dB by which a pattern of period two pixels sticks out, beyond real images; near 0 is good.
  a-b       power in the band of a to b cycles per image against real images, in dB; negative is too smooth.
"""


def build_parser() -> ArgumentParser:
    """The options of an evaluation; their names are the fields of `Options`, and `--debug`."""
    parser = ArgumentParser(
        prog="python -m eval",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_sets(parser)
    _add_extractor(parser)
    _add_sampling(parser)
    _add_output(parser)
    return parser


def run(args: Namespace) -> None:
    """Evaluate, write the report and print it."""
    from .evaluate import evaluate

    settings = {name: value for name, value in vars(args).items() if name != "debug"}
    evaluate(Options(**settings))


def _add_sets(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("image sets")
    what = "pipeline folder (model_index.json), hub id, folder of images or parquet file"
    group.add_argument("--student", metavar="PATH", help=what)
    group.add_argument("--teacher", metavar="PATH", help=f"a row to compare with: {what}")
    group.add_argument(
        "--reference",
        type=Path,
        required=True,
        metavar="PATH",
        help="real images (folder or parquet file with an image column), or their statistics (.npz)",
    )
    group.add_argument(
        "--real-images",
        type=Path,
        metavar="PATH",
        help="real images for the power spectrum, when --reference is a statistics file",
    )


def _add_extractor(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "feature extractor",
        "How images are made for it is read from its preprocessor_config.json, or said here: squashed to a square, "
        "(x / 255 - mean) / std per channel.",
    )
    group.add_argument(
        "--extractor", type=Path, required=True, metavar="FOLDER", help="folder of a transformers image model"
    )
    group.add_argument("--extractor-size", type=positive, metavar="PX", help="side of the square")
    group.add_argument(
        "--extractor-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of black and white, such as -1 1",
    )
    for name in ("mean", "std"):
        group.add_argument(
            f"--extractor-{name}",
            type=float,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{name} of images in [0, 1], instead of --extractor-range",
        )
    group.add_argument(
        "--extractor-kernel", choices=("bilinear", "bicubic"), default="bilinear", help="default: bilinear"
    )
    group.add_argument("--extractor-antialias", action="store_true", help="widen the kernel when shrinking")


def _add_sampling(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--steps", type=step_counts, metavar="LIST", help="of the student, such as 1,4 (default: those it was made for)"
    )
    group.add_argument(
        "--teacher-steps", type=step_counts, default=(50,), metavar="LIST", help="such as 50,4,1 (default: 50)"
    )
    group.add_argument(
        "--guidance", type=float, metavar="W", help="of the student: uncond + W (cond - uncond), 1 is none"
    )
    group.add_argument("--teacher-guidance", type=float, metavar="W", help="the same for the teacher")
    group.add_argument("--prompts", type=Path, metavar="FILE", help="one per line, cycled, for text pipelines")
    group.add_argument("--num", type=positive, default=10_000, metavar="N", help="images per row (default: 10000)")
    group.add_argument("--seed", type=natural, default=0, metavar="S", help="image i uses seed S + i (default: 0)")
    group.add_argument("--batch-size", type=positive, default=64, metavar="B", help="default: 64")
    group.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1 (default: auto)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="of the pipelines (default: float32)")
    group.add_argument(
        "--allow-small",
        action="store_true",
        help="accept fewer images than feature dimensions: the distance is then mostly bias",
    )


def _add_output(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", type=Path, default=Path("report"), metavar="DIR", help="gets metrics.json (default: report)"
    )
    group.add_argument("--save-stats", type=Path, metavar="FILE", help="store the reference's statistics (.npz)")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier report or statistics file")
    group.add_argument("--debug", action="store_true", help="show stack traces")


def step_counts(text: str) -> tuple[int, ...]:
    """Step counts from a list such as "1,4"."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentTypeError(f"{text!r} is not a list of step counts such as 1,4")
    return tuple(dict.fromkeys(map(int, parts)))
