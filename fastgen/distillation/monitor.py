"""Quality while training, with the measures of `eval`: few samples, always of the same seeds, beside few references."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..data.digits import CANVAS, from_canvas
from ..engine.quality import Yardstick
from ..engine.stage import Stage
from ..errors import UserError
from .student import Student

if TYPE_CHECKING:
    from eval.collect import Eyes, Seen
    from eval.comparison import Metric
    from eval.images.decode import ImageBatch

REFERENCES = 10_000  # training images looked at, evenly spread, where no reference is named
BATCH = 64
GAPS: Mapping[str, Callable[[float], float]] = {  # what is better -> how far a value is from perfect
    "lower": lambda value: value,
    "higher": lambda value: -value,
    "one": lambda value: abs(value - 1),
    "zero": abs,
}
DIGITS = {"frechet": "lower", "accuracy": "higher", "diversity": "one"}


def yardstick(student: Student, *, here: bool) -> Yardstick | None:
    """What the config's `evaluate` measures while training; None for the protocol none.

    Args:
        here: whether this process is the one that measures, and so needs extractor and references.

    Raises:
        UserError: the metric is unknown, the pipeline makes no digits, or extractor or references are missing.
    """
    protocol = student.config.evaluate.protocol
    if protocol == "none":
        return None
    return _of_digits(student) if protocol == "digits" else _of_features(student, here=here)


def _of_digits(student: Student) -> Yardstick:
    from eval.digits.figures import class_balanced_labels, digits_figures

    spec, pipeline = student.config.evaluate, student.pipeline
    if pipeline.shape != (1, CANVAS, CANVAS) or len(pipeline.classes) != 10:
        raise UserError(
            f"evaluate.protocol is digits, but the teacher's samples are {pipeline.shape} with {len(pipeline.classes)} "
            f"classes, not digits on a canvas of {CANVAS} x {CANVAS}: choose another protocol, such as domain"
        )
    labels = class_balanced_labels(spec.num)

    def figures(stage: Stage) -> dict[str, float]:
        canvases = student.draw(stage.roles.generator, labels).cpu()
        if not bool(canvases.isfinite().all()):
            return dict.fromkeys(DIGITS, math.nan)
        return asdict(digits_figures(from_canvas(canvases), labels))

    return Yardstick(figures, spec.metric, GAPS[_better(spec.metric, DIGITS)])


def _of_features(student: Student, *, here: bool) -> Yardstick:
    from eval.metrics import METRICS, chosen

    spec = student.config.evaluate
    blind = {"clip", "rewards"} - {spec.protocol}
    usable = [metric for metric in METRICS if blind.isdisjoint(metric.columns)]
    known = {name: about.better for metric in usable for name, about in metric.figures.items()}
    decisive = "fid" if spec.metric == "frechet" else spec.metric
    gap = GAPS[_better(decisive, known)]
    metrics = chosen(("fid", "kid", decisive), clip=True)
    return Yardstick(_Onlooker(student, metrics, decisive).figures if here else _elsewhere, decisive, gap)


class _Onlooker:
    """Looks at samples and references through one extractor."""

    def __init__(self, student: Student, metrics: tuple["Metric", ...], decisive: str) -> None:
        from eval.measures.frechet import Target
        from eval.measures.statistics_file import load_statistics

        self._student, self._metrics, self._decisive = student, metrics, decisive
        self._eyes, self._identity = _eyes(student)
        reference = student.config.evaluate.reference
        self._real: Seen | None = None
        if reference is not None and reference.suffix == ".npz":
            statistics = load_statistics(reference)
        else:
            self._real = real = _seen(_references(student, self._eyes), self._eyes, metrics)
            assert real.moments is not None
            statistics = real.moments.statistics(self._identity)
        self._target = Target.of(statistics, device=student.device)

    def figures(self, stage: Stage) -> dict[str, float]:
        """The values of the chosen metrics; NaN where a sample is not finite."""
        from eval.comparison import Comparison
        from eval.measure import figures_of

        try:
            seen = _seen(_samples(self._student, stage), self._eyes, self._metrics)
        except _NotFiniteError:
            return {self._decisive: math.nan}
        assert seen.moments is not None
        comparison = Comparison(
            seen=seen,
            statistics=seen.moments.statistics(self._identity),
            target=self._target,
            real=self._real,
            teacher={},
            classes=self._eyes.extractor.classes if self._eyes.extractor else (),
            device=self._student.device,
            seed=0,
        )
        figures, missing = figures_of(self._metrics, comparison)
        if self._decisive not in figures:
            reason = missing.get(self._decisive, "it compares with a teacher's row of a report")
            raise UserError(f"evaluate.metric is {self._decisive}, which cannot be measured here: {reason}")
        return {name: figure.value for name, figure in figures.items()}


class _NotFiniteError(Exception):
    """A sample holds NaN or infinity."""


def _elsewhere(stage: Stage) -> Mapping[str, float]:
    raise AssertionError("only the first process measures")


def _better(metric: str, known: Mapping[str, str]) -> str:
    if metric not in known:
        raise UserError(f"evaluate.metric is {metric}, which this protocol does not have: use {', '.join(known)}")
    return known[metric]


def _eyes(student: Student) -> tuple["Eyes", str]:
    """The protocol's network, and its identity in words."""
    from eval.collect import Eyes
    from eval.networks.clip import Clip
    from eval.networks.protocols import build_extractor
    from eval.options import Options

    spec = student.config.evaluate
    assert spec.protocol != "none"
    assert spec.protocol != "digits"
    options = Options(reference=spec.reference or Path(), protocol=spec.protocol, extractor=spec.extractor)
    extractor = build_extractor(options, student.device)
    clip = extractor if isinstance(extractor, Clip) else None
    return Eyes(extractor, clip), f"{spec.protocol}: {extractor.identity}"


def _seen(batches: Iterable["ImageBatch"], eyes: "Eyes", metrics: tuple["Metric", ...]) -> "Seen":
    from eval.collect import Collector

    wanted = frozenset(column for metric in metrics for column in metric.columns)
    collector = Collector(eyes, wanted, first=0, pictures=0, seed=0)
    for batch in batches:
        collector.update(batch)
    return collector.seen(())


def _samples(student: Student, stage: Stage) -> Iterator["ImageBatch"]:
    """What the generator draws for the classes or the data's prompts in turn."""
    from eval.images.decode import ImageBatch

    prompts, start = student.config.data.prompts, 0
    for pictures in student.pictures(stage.roles.generator, student.config.evaluate.num):
        if not bool(pictures.isfinite().all()):
            raise _NotFiniteError
        numbers = range(start, start + len(pictures))
        asked = student.asked(numbers)
        kinds = asked.labels if prompts is None else torch.tensor(numbers) % len(prompts)
        conditions = torch.zeros(len(pictures), dtype=torch.int64) if kinds is None else kinds
        yield ImageBatch(_pixels(pictures), asked.labels, asked.prompts, conditions)
        start = numbers.stop


def _references(student: Student, eyes: "Eyes") -> Iterator["ImageBatch"]:
    """All images of the named reference, or the training images."""
    from eval.images.decode import ImageBatch, Reading, image_batches
    from eval.images.sets import open_images

    reference, data = student.config.evaluate.reference, student.config.data
    if reference is not None:
        assert eyes.extractor is not None
        yield from image_batches(open_images(reference), Reading(BATCH, eyes.extractor.resizes))
        return
    if not data.has_images:
        raise UserError(
            "evaluate has nothing to compare with, because the data has no images: give evaluate.reference=FOLDER with "
            "real images, or samples of the teacher"
        )
    count = min(len(data), REFERENCES)
    chosen = [i * len(data) // count for i in range(count)]
    for start in range(0, count, BATCH):
        yield ImageBatch(_pixels(data.items(chosen[start : start + BATCH]).images), None)


def _pixels(images: Tensor) -> Tensor:
    """[B, C, H, W] in [-1, 1] as uint8 RGB [B, 3, H, W], rounded to the nearest level."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).expand(-1, 3, -1, -1)
