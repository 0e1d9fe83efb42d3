"""How a run is measured, by `eval`: few samples of the same seeds while it trains, and a report of what it left.

Loads what `eval` looks at images through, so that `distil` imports it for a run that is measured alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from eval.collect import Collector, Eyes, Seen
from eval.comparison import Comparison, Metric
from eval.digits.figures import class_balanced_labels, digits_figures
from eval.digits.report import DigitsSource, digits_report, save
from eval.images.decode import ImageBatch, Reading, image_batches
from eval.images.sets import open_images
from eval.measure import figures_of
from eval.measures.frechet import Target
from eval.measures.statistics_file import load_statistics
from eval.metrics import METRICS, chosen
from eval.networks.clip import Clip
from eval.networks.protocols import build_extractor
from eval.options import Options

from ..data.digits import CANVAS, from_canvas
from ..data.pixels import to_uint8
from ..engine.quality import Yardstick
from ..engine.run import Trained
from ..engine.stage import Stage
from ..errors import UserError, say
from ..models.pipelines.arguments import in_turn
from .student import Student

REFERENCES = 10_000  # training images looked at, evenly spread, where no reference is named
BATCH = 64
GAPS: Mapping[str, Callable[[float], float]] = {  # what is better -> how far a value is from perfect
    "lower": lambda value: value,
    "higher": lambda value: -value,
    "one": lambda value: abs(value - 1),
    "zero": abs,
}
DIGITS = {"frechet": "lower", "accuracy": "higher", "diversity": "one"}


@dataclass(frozen=True)
class Monitor:
    """How a run is measured.

    Attributes:
        yardstick: yardstick of its generator while it trains.
        report: report of what it left, beside its teacher.
    """

    yardstick: Yardstick
    report: Callable[[Trained], None]


def monitor(student: Student, *, here: bool) -> Monitor:
    """What the config's `evaluate` asks for; its protocol is not none.

    Args:
        here: whether this process is the one that measures, and so needs extractor and references.

    Raises:
        UserError: the metric is unknown, the pipeline makes no digits, or extractor or references are missing.
    """
    if student.config.evaluate.protocol == "digits":
        return Monitor(_of_digits(student), partial(_report_digits, student))
    return Monitor(_of_features(student, here=here), lambda trained: None)


def _of_digits(student: Student) -> Yardstick:
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


def _report_digits(student: Student, trained: Trained) -> None:
    """Teacher and student side by side: the student after each stage, the teacher at many steps and at as few."""
    config, teacher, few = student.config, student.pipeline.denoiser(), len(student.plan.grids[0])
    spec, folder = config.evaluate, config.out / "report"
    doubled = 2 if spec.teacher_guidance != 1 else 1
    sources = {
        f"teacher, {n} step{'s' * (n > 1)}": DigitsSource(
            partial(student.draw_teacher, teacher, steps=n, guidance=spec.teacher_guidance), n * doubled, steps=n
        )
        for n in (spec.teacher_steps, few)
    }
    for name, weights in trained.weights.items():
        sources[f"student after {name}"] = DigitsSource(partial(student.draw, student.generator(weights)), few)
    report = digits_report(sources, seed=config.seed)
    save(report, folder)
    say(report.table())
    say(f"picture: {folder / 'digits.png'}, page: {folder / 'report.html'}")


def _of_features(student: Student, *, here: bool) -> Yardstick:
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

    def __init__(self, student: Student, metrics: tuple[Metric, ...], decisive: str) -> None:
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


def _eyes(student: Student) -> tuple[Eyes, str]:
    """The protocol's network, and its identity in words."""
    spec = student.config.evaluate
    assert spec.protocol != "none"
    assert spec.protocol != "digits"
    options = Options(reference=spec.reference or Path(), protocol=spec.protocol, extractor=spec.extractor)
    extractor = build_extractor(options, student.device)
    clip = extractor if isinstance(extractor, Clip) else None
    return Eyes(extractor, clip), f"{spec.protocol}: {extractor.identity}"


def _seen(batches: Iterable[ImageBatch], eyes: Eyes, metrics: tuple[Metric, ...]) -> Seen:
    wanted = frozenset(column for metric in metrics for column in metric.columns)
    collector = Collector(eyes, wanted, first=0, pictures=0, seed=0)
    for batch in batches:
        collector.update(batch)
    return collector.seen(())


def _samples(student: Student, stage: Stage) -> Iterator[ImageBatch]:
    """What the generator draws for the classes or the data's prompts in turn."""
    prompts, start = student.config.data.prompts, 0
    for pictures in student.pictures(stage.roles.generator, student.config.evaluate.num):
        if not bool(pictures.isfinite().all()):
            raise _NotFiniteError
        numbers = range(start, start + len(pictures))
        asked = student.asked(numbers)
        kinds = asked.labels if prompts is None else torch.tensor(in_turn(range(len(prompts)), numbers))
        conditions = torch.zeros(len(pictures), dtype=torch.int64) if kinds is None else kinds
        yield ImageBatch(_shown(pictures), asked.labels, asked.prompts, conditions)
        start = numbers.stop


def _references(student: Student, eyes: Eyes) -> Iterator[ImageBatch]:
    """All images of the named reference, or the training images."""
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
        yield ImageBatch(_shown(data.items(chosen[start : start + BATCH]).images), None)


def _shown(images: Tensor) -> Tensor:
    """[B, C, H, W] in [-1, 1] as uint8 RGB [B, 3, H, W]."""
    return to_uint8(images / 2 + 0.5).expand(-1, 3, -1, -1)
