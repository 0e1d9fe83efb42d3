"""What can be known to be wrong with an evaluation before a model is loaded."""

from pathlib import Path

from fastgen.disk import check_writable
from fastgen.errors import UserError, did_you_mean, warn

from .images.sets import open_images
from .images.sources import Request, is_image_set
from .metrics_json import FILE
from .networks.protocols import PROTOCOLS
from .options import Options
from .report.assertions import check_assertions


def check(options: Options) -> None:
    """Raises UserError for options that contradict each other, missing images, and results in the way."""
    measured = bool(options.generated or options.held_out)
    if not measured and options.save_stats is None:
        raise UserError(
            "there is nothing to measure: give --student (and --teacher) to compare with the reference, or "
            "--save-stats FILE.npz to store the reference's statistics"
        )
    _check_reference(options)
    for path in (*options.generated, *([str(options.held_out)] if options.held_out else [])):
        _check_count(path, options)
    request = Request.read(options.prompts, options.labels)
    for path in options.generated:
        _check_prompts(path, request)
    _check_names(options)
    check_assertions(options)
    _warn_of_files(options)
    if measured:
        _refuse_overwriting(options.out / FILE, options, remedy="give another folder with --out")
    if options.save_stats is not None:
        _refuse_overwriting(options.save_stats, options, remedy="give --save-stats another name")


def _check_reference(options: Options) -> None:
    if options.reference is None:
        if PROTOCOLS[options.protocol].own is None:
            raise UserError(
                f"the protocol {options.protocol} compares with real images of yours: name them with --reference, a "
                "folder, a zip, parquet or tar file, or their statistics (.npz)"
            )
        if options.real_images is not None:
            raise UserError("--real-images goes with a reference of statistics: leave it out, or give --reference")
        return
    if not options.reference_is_statistics:
        open_images(options.reference)
        if options.real_images is not None:
            raise UserError(
                f"--real-images goes with a reference of statistics, but {options.reference} holds images, which serve "
                "for pixel metrics too; leave --real-images out"
            )
    elif options.save_stats is not None:
        raise UserError(
            f"--save-stats stores the statistics of reference images, but {options.reference} is such a file already; "
            "leave --save-stats out, or give images as --reference"
        )
    if options.real_images is not None:
        open_images(options.real_images)


def _check_count(path: str, options: Options) -> None:
    """Refuses image files that cannot fill a row, before anything slow has been done."""
    if is_image_set(path) and (count := len(open_images(Path(path)))) < options.num:
        raise UserError(
            f"{path} has {count:,} images, but every row of the report needs {options.num:,}; rows of different N "
            f"cannot be compared. Add images, or compare everything at --num-images {count}."
        )


def _check_names(options: Options) -> None:
    metrics = PROTOCOLS[options.protocol].metrics
    known = [name for metric in metrics for name in (metric.name, *metric.figures)]
    for name in options.metrics or ():
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"known: {', '.join(dict.fromkeys(known))}")
            raise UserError(f"--metrics names {name!r}, which is no metric; {hint}")
    columns = {column for metric in metrics for column in metric.columns}
    for setting, column in (("clip", "clip"), ("lpips", "lpips"), ("rewards", "rewards")):
        if getattr(options, setting) and column not in columns:
            raise UserError(
                f"--{setting.removesuffix('s')} names a network, but the protocol {options.protocol} measures nothing "
                f"with it, only {', '.join(known)}: leave it out, or choose another protocol"
            )
    for text in options.rewards:
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise UserError(f"--reward {text!r} must be NAME=FOLDER, such as pickscore=models/PickScore_v1")


def _check_prompts(path: str, request: Request) -> None:
    """Refuses images that their manifest says were drawn for other prompts than those given."""
    drawn = open_images(Path(path)).prompts if is_image_set(path) else None
    other = next((prompt for prompt in drawn or () if prompt not in (request.prompts or drawn or ())), None)
    if other is not None:
        raise UserError(
            f"{path} was drawn for prompts that --prompts does not hold, such as {other!r}, so its rows would be "
            "measured on other prompts than the rest. Give the prompts that it was drawn for, or leave --prompts out."
        )


def _warn_of_files(options: Options) -> None:
    """What is asked of a pipeline changes nothing where images are already there."""
    settings = {"student": ("steps", "guidance"), "teacher": ("teacher_guidance",)}
    sides = {"student": options.student, "teacher": options.teacher}
    for side, path in sides.items():
        if path is not None and is_image_set(path):
            for name in settings[side]:
                if getattr(options, name) is not None:
                    warn(f"--{name.replace('_', '-')} changes nothing: {path} holds images that are already drawn.")
    if options.labels is not None and all(map(is_image_set, options.generated)):
        warn("--labels changes nothing: no pipeline is sampled, and images bring labels of their own.")


def _refuse_overwriting(file: Path, options: Options, *, remedy: str) -> None:
    check_writable(file.parent, "--out" if file.name == FILE else "the folder of --save-stats")
    if file.exists() and not options.overwrite:
        raise UserError(f"{file} is already there; {remedy}, or replace it with --overwrite")
