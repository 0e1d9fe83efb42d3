"""One evaluation from its options to its report."""

import platform
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fastgen.errors import UserError

from . import report as reports
from .checks import check, explicit_resize
from .extractors import TransformersExtractor
from .frechet import require_same_features
from .images import image_batches, open_images
from .observe import Figures, Observation, compare, observe
from .options import Options
from .preprocessing import preprocess_for
from .report import Report, Row
from .sources import Draw, Origin, sources
from .spectrum import Spectrum, SpectrumMean
from .statistics_file import load_statistics, save_statistics

_VERSIONED = ("fastgen", "torch", "diffusers", "transformers", "numpy", "pillow")


def evaluate(options: Options) -> Report:
    """Measures teacher and student, writes metrics.json after every row and prints the table.

    Raises:
        UserError: the options contradict each other, a file or model is unusable, or the report is in the way.
    """
    check(options)
    device = _device(options.device)
    preprocess = preprocess_for(options.extractor, explicit_resize(options))
    extractor = TransformersExtractor(options.extractor, preprocess, device=device)
    if options.sides:
        _refuse_small(options, options.num, extractor.dim)
    real = _observe_reference(options, extractor)
    if options.save_stats:
        save_statistics(options.save_stats, real.statistics)
        print(f"statistics of the reference are in {options.save_stats}")
    report = Report(
        options=options,
        extractor=extractor.identity,
        dim=extractor.dim,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {platform.machine()}",
        versions={name: _version(name) for name in _VERSIONED},
        reference_extractor=real.statistics.extractor,
        rows=(_real_row(options, real),),
    )
    for row in _measured(options, extractor, real):
        report = replace(report, rows=(*report.rows, row))
        reports.write(report, options.out)
    print(reports.table(report))
    if options.sides:
        print(f"all figures are in {options.out / reports.FILE}")
    return report


def _measured(options: Options, extractor: TransformersExtractor, real: Observation) -> Iterator[Row]:
    draw = Draw(
        num=options.num,
        seed=options.seed,
        batch_size=options.batch_size,
        device=extractor.device,
        dtype=getattr(torch, options.dtype),
        prompts=options.prompts,
        mixed_sizes=extractor.resizes,
    )
    for side in options.sides:
        for source in sources(side.path, draw, steps=side.steps, guidance=side.guidance):
            seen = observe(source.batches(), extractor, total=draw.num, title=f"{side.role}, {source.title}")
            yield Row(side.role, source.origin(), compare(seen, real))


def _observe_reference(options: Options, extractor: TransformersExtractor) -> Observation:
    if options.reference_is_statistics:
        statistics = load_statistics(options.reference)
        require_same_features(statistics, extractor=extractor.identity, dim=extractor.dim)
        if statistics.count is not None:
            _refuse_small(options, statistics.count, extractor.dim)
        return Observation(statistics, _spectrum(options.real_images, options.batch_size), accuracy=None)
    images = open_images(options.reference)
    _refuse_small(options, len(images), extractor.dim)
    batches = image_batches(images, options.batch_size, mixed_sizes=extractor.resizes)
    return observe(batches, extractor, total=len(images), title="real")


def _spectrum(path: Path | None, batch_size: int) -> Spectrum | None:
    if path is None:
        return None
    mean = SpectrumMean()
    for batch in image_batches(open_images(path), batch_size):
        mean.update(batch.images)
    return mean.spectrum()


def _real_row(options: Options, real: Observation) -> Row:
    figures = Figures(real.statistics.count, frechet=None, accuracy=real.accuracy, bands=None, nyquist_peak=None)
    return Row("real", Origin(str(options.reference)), figures)


def _refuse_small(options: Options, num: int, dim: int) -> None:
    if num < dim and not options.allow_small:
        raise UserError(
            f"{num:,} images are fewer than the {dim:,} feature dimensions: their covariance is rank deficient and "
            f"the Frechet distance mostly its bias, about 1 / N. Use at least {10 * dim:,} images, or --allow-small "
            "for a rough figure that is compared at equal N only."
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"There is no device {name!r} here ({' '.join(str(error).split())[:200]}); leave --device out, or give "
            "cpu, cuda or cuda:1."
        ) from error
    return device


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
