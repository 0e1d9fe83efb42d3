"""Measure a student beside its teacher, by one protocol.

Every row of the report is one image set: the real images, the teacher at many steps and at the student's few, the
student at each of its step counts. All generated rows have the same number of images and the same seeds, because a
Frechet distance is biased upwards by about 1 / N: figures of different N or protocols must not be compared.
Several GPUs: torchrun --nproc-per-node 4 -m eval --num-images 50000 ..., or accelerate launch -m eval likewise; the
figures stay the same.
"""

from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter, _ArgumentGroup
from typing import Any, get_args

from fastgen.command import NUM, add_call, add_stack, device, finite, natural, place, positive
from fastgen.errors import ExitCode

from .options import PROTOCOL_NAMES, Kernel, Options, Precision

_EXAMPLES = """\
examples:
  a student of 1 and 4 steps beside its teacher, against a folder of real images:
    %(prog)s --student out/student --steps 1,4 --teacher my/teacher --teacher-steps 50 \\
        --reference real/ --extractor my/vision-model --out report

  published conventions: clean-fid's network in the cache, or given with --extractor FILE:
    %(prog)s --student out/student --reference real.zip --protocol clean --num-images 50000

  a text pipeline with prompts, CLIP score and a reward model, failing a CI job when it is worse than it should be:
    %(prog)s --student out/student --steps 4 --teacher my/teacher --prompts prompts.txt --reference real.tar \\
        --protocol dinov2 --clip openai/clip-vit-large-patch14 --reward pick=PickScore_v1 \\
        --assert 'fid[4] < 20' --assert 'diversity_ratio[4] > 0.9'

  an extractor that does not say how its images are made (no preprocessor_config.json):
    %(prog)s --student out/student --reference train.parquet --extractor my/resnet \\
        --extractor-size 96 --extractor-range -1 1

  images that are already there, and statistics computed once:
    %(prog)s --reference train.parquet --extractor my/vision-model --save-stats train.npz
    %(prog)s --student samples/ --reference train.npz --real-images train.parquet --extractor my/vision-model

how to read the table: what each figure is, which way is better and who defined it stands in metrics.json, whose
schema is docs/metrics.md. Quality is always several figures together: a Frechet distance does not see a fine grid
(nyquist, SWD do), nor alone lost variety (div/teacher, recall, an accuracy above the real images' own).
"""


def build_parser() -> ArgumentParser:
    """The options of an evaluation: fields of `Options`, which has their defaults, and `--debug`."""
    parser = ArgumentParser(
        prog="python -m eval",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
        argument_default=SUPPRESS,
        allow_abbrev=False,
    )
    _add_sets(parser)
    _add_extractor(parser)
    _add_metrics(parser)
    _add_sampling(parser)
    _add_output(parser)
    return parser


def run(args: Namespace) -> int:
    """Evaluate, write the report and print it; 1 when an assertion fails."""
    from .evaluate import evaluate  # brings torch, which --help does without

    report = evaluate(to_options(args))
    failed = report is not None and not all(verdict.holds for verdict in report.assertions)
    return ExitCode.FAULT if failed else ExitCode.DONE


def to_options(args: Namespace) -> Options:
    """What the command line says; several values become tuples."""
    given: dict[str, Any] = {name: value for name, value in vars(args).items() if name != "debug"}
    return Options(**given | {name: tuple(value) for name, value in given.items() if isinstance(value, list)})


def _add_sets(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("image sets")
    files = "folder, zip, parquet or tar file of images, or folder of tar shards"
    what = f"pipeline folder (model_index.json), hub id, or {files}"
    group.add_argument("--student", metavar="PATH", help=f"{what}; or the folder of a LoRA student or of several")
    add_stack(group)
    group.add_argument("--teacher", metavar="PATH", help="likewise, to compare with")
    group.add_argument(
        "--reference",
        type=place,
        metavar="PATH",
        help=f"real images: {files}; or statistics (.npz); the protocol digits brings its own",
    )
    group.add_argument(
        "--held-out",
        type=place,
        metavar="PATH",
        help="real images that are not in the reference; their row is the best that can be reached",
    )
    group.add_argument(
        "--real-images",
        type=place,
        metavar="PATH",
        help="real images for pixel metrics, when --reference is a file of statistics",
    )
    group.add_argument(
        "--skip-bad", action="store_true", help="leave out unreadable images; they are counted and reported"
    )
    group.add_argument(
        "--skip-flagged",
        action="store_true",
        help="leave out images that a safety checker blackened; they are counted and reported in any case",
    )


def _add_extractor(parser: ArgumentParser) -> None:
    group = parser.add_argument_group(
        "protocol",
        "A domain extractor's preprocessing is read from its preprocessor_config.json, or given here: images are "
        "resized to a square, then (x / 255 - mean) / std per channel. That of the other protocols is fixed.",
    )
    group.add_argument("--protocol", choices=PROTOCOL_NAMES, help=f"default: {Options.protocol}")
    group.add_argument(
        "--extractor",
        metavar="PATH",
        help="folder or hub name of a transformers image model; for clean, edm, adm a file",
    )
    group.add_argument("--extractor-sha256", metavar="HEX", help="refuse any other file, for clean, edm and adm")
    group.add_argument("--extractor-size", type=positive, metavar="PX", help="side of the square")
    group.add_argument(
        "--extractor-range",
        type=finite,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="values of black and white, such as -1 1",
    )
    for name in ("mean", "std"):
        group.add_argument(
            f"--extractor-{name}",
            type=finite,
            nargs=3,
            metavar=("R", "G", "B"),
            help=f"{name} of images in [0, 1], instead of --extractor-range",
        )
    group.add_argument("--extractor-kernel", choices=get_args(Kernel), help=f"default: {Options.extractor_kernel}")
    group.add_argument("--extractor-antialias", action="store_true", help="widen the kernel when shrinking")
    group.add_argument("--fast", action="store_true", help="use TF32 in the extractors; every result says so")
    group.add_argument(
        "--allow-small",
        action="store_true",
        help="accept fewer images than the protocol asks for; such figures are mostly bias",
    )


def _add_metrics(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("metrics")
    group.add_argument(
        "--metrics", type=names, metavar="LIST", help="metrics, such as fid,kid,prdc,vendi (default: the quick ones)"
    )
    group.add_argument("--clip", metavar="MODEL", help="folder or hub id of a CLIP model, for CLIP score and CMMD")
    group.add_argument(
        "--lpips",
        metavar="FILE",
        help="AlexNet weights (.safetensors), for LPIPS between images of one prompt or class",
    )
    group.add_argument(
        "--reward",
        dest="rewards",
        action="append",
        metavar="NAME=MODEL",
        help="in the CLIP format; may repeat",
    )
    group.add_argument(
        "--assert",
        dest="assertions",
        action="append",
        metavar="TEXT",
        help="such as 'fid[4] < 5' of the student at 4 steps; exit code 1 if it fails; may repeat",
    )


def _add_sampling(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--steps",
        type=step_counts,
        metavar="LIST",
        help="steps of the student, such as 1,4 (default: those it was trained for)",
    )
    group.add_argument(
        "--teacher-steps",
        type=step_counts,
        metavar="LIST",
        help=f"of the teacher, such as 50,20 (default: {_listed(Options.teacher_steps)}); the student's are added",
    )
    group.add_argument(
        "--guidance", type=finite, metavar="W", help="guidance of the student: uncond + W (cond - uncond); 1 is none"
    )
    group.add_argument("--teacher-guidance", type=finite, metavar="W", help="the same for the teacher")
    add_call(group)
    _add_images(group)
    _add_machine(group)


def _add_images(group: _ArgumentGroup) -> None:
    """Declares what images are drawn for, and how many."""
    group.add_argument(
        "--prompts",
        type=place,
        metavar="FILE",
        help="prompts of text pipelines, or of images drawn for them: line i is prompt i, empty lines too",
    )
    group.add_argument(
        "--labels", type=place, metavar="FILE", help="one class per line, in turn (default: all classes)"
    )
    group.add_argument(*NUM, dest="num", type=positive, metavar="N", help=f"images per row (default: {Options.num})")
    group.add_argument("--seed", type=natural, metavar="S", help=f"image i uses seed S + i (default: {Options.seed})")
    group.add_argument(
        "--seeds",
        type=positive,
        metavar="K",
        help="measure pipelines on K blocks of N seeds, S, S + N ...: means and their spread "
        f"(default: {Options.seeds})",
    )


def _add_machine(group: _ArgumentGroup) -> None:
    """Declares how images are drawn on this machine, and how long that may take."""
    group.add_argument(
        "--batch-size", type=positive, metavar="B", help=f"images per call (default: {Options.batch_size})"
    )
    group.add_argument(
        "--latency",
        type=step_counts,
        metavar="LIST",
        help="also measure seconds per image of each pipeline at these batch sizes, such as 1,4,16",
    )
    group.add_argument("--workers", type=positive, metavar="N", help=f"decoding processes (default: {Options.workers})")
    group.add_argument(
        "--timeout",
        type=positive,
        metavar="SECONDS",
        help=f"with several processes, how long one may give no sign of life (default: {Options.timeout:g})",
    )
    group.add_argument(
        "--device", type=device, metavar="NAME", help=f"auto, cpu, cuda, cuda:1 (default: {Options.device})"
    )
    group.add_argument(
        "--dtype",
        choices=get_args(Precision),
        help=f"dtype of the pipelines (default: {Options.dtype}); autocast: bfloat16 in the networks, float32 weights",
    )


def _add_output(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out",
        type=place,
        metavar="DIR",
        help=f"folder for report.html, metrics.json and images/ (default: {Options.out})",
    )
    group.add_argument(
        "--gallery", type=natural, metavar="N", help=f"pictures shown per row (default: {Options.gallery})"
    )
    group.add_argument("--save-stats", type=place, metavar="FILE", help="store the reference's statistics (.npz)")
    group.add_argument("--overwrite", action="store_true", help="replace an earlier report or statistics file")
    group.add_argument("--debug", action="store_true", default=False, help="show stack traces")


def _listed(counts: tuple[int, ...]) -> str:
    return ",".join(map(str, counts))


def step_counts(text: str) -> tuple[int, ...]:
    """Counts from a list such as "1,4"."""
    parts = [part.strip() for part in text.split(",")]
    try:
        return tuple(dict.fromkeys(map(positive, parts)))
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{text!r:.80} is not a list of counts such as 1,4") from error


def names(text: str) -> tuple[str, ...]:
    """Names from a list such as "fid,kid"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
