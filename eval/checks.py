"""What can be known to be wrong with an evaluation before a model is loaded."""

from pathlib import Path

from fastgen.data.prompts import PromptFile
from fastgen.errors import UserError

from .images import open_images
from .options import Options
from .preprocessing import Resize
from .report import FILE
from .sources import check_source


def check(options: Options) -> None:
    """Raises UserError for options that contradict each other, missing images, and results in the way."""
    if not options.sides and options.save_stats is None:
        raise UserError(
            "There is nothing to measure: give --student (and --teacher) to compare with the reference, or "
            "--save-stats FILE.npz to store the reference's statistics."
        )
    _check_reference(options)
    for side in options.sides:
        check_source(side.path, options.num)
    if options.prompts is not None:
        PromptFile(options.prompts).check()
    if options.sides:
        _refuse_overwriting(options.out / FILE, options, remedy="give another folder with --out")
    if options.save_stats is not None:
        _refuse_overwriting(options.save_stats, options, remedy="give --save-stats another name")


def explicit_resize(options: Options) -> Resize | None:
    """The preprocessing that was spelled out on the command line, None when nothing was.

    Raises:
        UserError: it was spelled out in part, or twice.
    """
    size, span = options.extractor_size, options.extractor_range
    mean, std = options.extractor_mean, options.extractor_std
    kernel, antialias = options.extractor_kernel, options.extractor_antialias
    if not any((size, span, mean, std, antialias, kernel != "bilinear")):
        return None
    if size is not None and span is not None and mean is None and std is None:
        if span[0] >= span[1]:
            raise UserError(f"--extractor-range {span} is empty; give the value of black first, such as -1 1 or 0 1.")
        return Resize.to_range(size, *span, kernel=kernel, antialias=antialias)
    if size is None or span is not None or mean is None or std is None:
        raise UserError(
            "The extractor's preprocessing needs --extractor-size together with either --extractor-range, or both "
            "--extractor-mean and --extractor-std."
        )
    if min(std) <= 0:
        raise UserError(f"--extractor-std {std} must be positive: images in [0, 1] are divided by it.")
    return Resize(size, mean, std, kernel=kernel, antialias=antialias)


def _check_reference(options: Options) -> None:
    if not options.reference_is_statistics:
        open_images(options.reference)
        if options.real_images is not None:
            raise UserError(
                f"--real-images goes with a reference of statistics, but {options.reference} holds images, which serve "
                "for the spectrum too; leave --real-images out."
            )
    elif options.save_stats is not None:
        raise UserError(
            f"--save-stats stores the statistics of reference images, but {options.reference} is such a file already; "
            "leave --save-stats out, or give images as --reference."
        )
    if options.real_images is not None:
        open_images(options.real_images)


def _refuse_overwriting(file: Path, options: Options, *, remedy: str) -> None:
    if file.exists() and not options.overwrite:
        raise UserError(f"{file} is already there; {remedy}, or replace it with --overwrite.")
