"""How a run is measured, by `eval`: few samples of the same seeds while it trains, and a report of what it left.

Loads what `eval` looks at images through, so that `distil` imports it for a run that is measured alone.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eval.collect import Collector, Seen
from eval.columns import Eyes
from eval.comparison import Comparison, Metric
from eval.evaluate import compare, floor
from eval.images.decode import ImageBatch, Reading, image_batches
from eval.images.drawing import DrawnSource
from eval.images.sets import open_images
from eval.images.sources import eight_bit
from eval.measure import Side, figures_of
from eval.measures.frechet import Target
from eval.measures.statistics_file import load_statistics
from eval.metrics import chosen
from eval.networks.clip import Clip
from eval.networks.protocols import PROTOCOLS, Protocol, build_extractor
from eval.options import Options
from eval.processes import Processes
from eval.report.showcase import contact_sheet
from eval.rows import Origin, Role
from eval.session import open_session

from ..config.evaluate import EvaluateConfig
from ..data.images import of_one_shape
from ..engine.distributed import share
from ..engine.quality import Yardstick
from ..engine.run import Trained
from ..engine.stage import Stage
from ..errors import UserError, say
from ..models.denoiser import NetworkDenoiser
from ..models.head_bank import Headed
from ..models.pipelines.arguments import in_turn
from ..sampling.call import steps_in_words
from ..sampling.sampler import SAMPLES_AT_ONCE
from .student import Student

REFERENCES = 10_000  # training images looked at, evenly spread, where no reference is named
BATCH = 64
GAPS: Mapping[str, Callable[[float], float]] = {  # what is better -> how far a value is from perfect
    "lower": lambda value: value,
    "higher": lambda value: -value,
    "one": lambda value: abs(value - 1),
    "zero": abs,
}
SHOWN = 20  # pictures of a row


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
        here: whether this process is the one that measures, and so needs references.

    Raises:
        UserError: the metric is unknown, the protocol cannot look at these samples, or extractor or references are
            missing.
    """
    spec, protocol = student.config.evaluate, _protocol(student.config.evaluate)
    protocol.check(student.pipeline.shape, len(student.pipeline.classes))
    decisive, better = _decisive(spec)
    metrics = chosen((*protocol.watched, decisive), clip=True, of=protocol.metrics)
    observer = _Observer(student, metrics, decisive)
    figures = _Judge(observer).figures if here else _not_here
    report = _no_report if protocol.own is None else partial(_report, student)
    return Monitor(Yardstick(observer.look, figures, decisive, GAPS[better]), report)


def check_measured(spec: EvaluateConfig) -> None:
    """Raises UserError for a figure that the protocol does not have, or where its network is not on this machine."""
    _decisive(spec)
    _protocol(spec).network(_options(spec))


def _decisive(spec: EvaluateConfig) -> tuple[str, str]:
    """The figure that decides, and what of it is better."""
    protocol, blind = _protocol(spec), {"clip", "rewards"} - {spec.protocol}
    usable = [metric for metric in protocol.metrics if blind.isdisjoint(metric.columns)]
    known = {name: about.better for metric in usable for name, about in metric.figures.items()}
    name = protocol.watched[0] if spec.metric == "frechet" else spec.metric
    if name not in known:
        raise UserError(f"evaluate.metric is {name}, which this protocol does not have: use {', '.join(known)}")
    return name, known[name]


class _Observer:
    """Looks at samples through the protocol's extractor; every process does, at its share of them."""

    def __init__(self, student: Student, metrics: tuple[Metric, ...], decisive: str) -> None:
        self.student, self.metrics, self.decisive = student, metrics, decisive
        self.eyes, self.identity = _eyes(student)

    def look(self, stage: Stage) -> Seen | None:
        """What is seen of this process's whole batches of samples; None where one is not finite."""
        batches = self.student.batches(self.student.config.evaluate.num)
        mine = [batches[number] for number in share(len(batches))]
        try:
            return _seen(
                _samples(self.student, stage, mine), self.eyes, self.metrics, first=mine[0].start if mine else 0
            )
        except _NotFiniteError:
            return None


class _Judge:
    """Compares what an observer sees with the references."""

    def __init__(self, observer: _Observer) -> None:
        self._observer = observer
        student, eyes = observer.student, observer.eyes
        reference = student.config.evaluate.reference
        self._real: Seen | None = None
        if reference is not None and reference.suffix == ".npz":
            statistics = load_statistics(reference)
        else:
            self._real = real = _seen(_references(student, eyes), eyes, observer.metrics)
            assert real.moments is not None
            statistics = real.moments.statistics(observer.identity)
        self._target = Target.of(statistics, device=student.device)

    def figures(self, parts: Sequence[Seen | None]) -> dict[str, float]:
        """The values of the chosen metrics of what all processes saw; NaN where a sample is not finite."""
        observer = self._observer
        found = [part for part in parts if part is not None]
        if len(found) < len(parts):
            return {observer.decisive: math.nan}
        seen = Seen.join(found)
        assert seen.moments is not None
        comparison = Comparison(
            seen=seen,
            statistics=seen.moments.statistics(observer.identity),
            target=self._target,
            real=self._real,
            teacher={},
            classes=observer.eyes.extractor.classes if observer.eyes.extractor else (),
            device=observer.student.device,
            seed=0,
        )
        figures, missing = figures_of(observer.metrics, comparison)
        if observer.decisive not in figures:
            reason = missing.get(observer.decisive, "it compares with a teacher's row of a report")
            raise UserError(f"evaluate.metric is {observer.decisive}, which cannot be measured here: {reason}")
        return {name: figure.value for name, figure in figures.items()}


class _NotFiniteError(Exception):
    """A sample holds NaN or infinity."""


def _not_here(parts: Sequence[Seen | None]) -> Mapping[str, float]:
    raise AssertionError("only the first process measures")


def _no_report(trained: Trained) -> None:
    """A protocol without real images of its own reports when it is asked, by `fastgen eval`."""


def _protocol(spec: EvaluateConfig) -> Protocol:
    assert spec.protocol != "none"
    return PROTOCOLS[spec.protocol]


def _options(spec: EvaluateConfig, **settings: Any) -> Options:
    assert spec.protocol != "none"
    return Options(reference=spec.reference, protocol=spec.protocol, extractor=spec.extractor, **settings)


def _eyes(student: Student) -> tuple[Eyes, str]:
    """The protocol's network, and its identity in words."""
    options = _options(student.config.evaluate)
    extractor = build_extractor(options, student.device)
    clip = extractor if isinstance(extractor, Clip) else None
    return Eyes(extractor, clip), f"{options.protocol}: {extractor.identity}"


def _seen(batches: Iterable[ImageBatch], eyes: Eyes, metrics: tuple[Metric, ...], *, first: int = 0) -> Seen:
    wanted = frozenset(column for metric in metrics for column in metric.columns)
    collector = Collector(eyes, wanted, first=first, pictures=0, seed=0)
    for batch in batches:
        collector.update(batch)
    return collector.seen(())


def _samples(student: Student, stage: Stage, batches: Iterable[range]) -> Iterator[ImageBatch]:
    """What the generator draws for the classes or the data's prompts in turn, of the samples of these numbers."""
    for numbers in batches:
        yield _batch(student, student.drawn(stage.roles.generator, numbers), numbers)


def _batch(student: Student, samples: Tensor, numbers: Sequence[int]) -> ImageBatch:
    """Samples as the protocol looks at them, with what their numbers ask for."""
    protocol, prompts = _protocol(student.config.evaluate), student.config.prompts
    pictures = student.pictures(samples) if protocol.clipped else samples
    if not bool(pictures.isfinite().all()):
        raise _NotFiniteError
    asked = student.asked(numbers)
    kinds = asked.labels if prompts is None else torch.tensor(in_turn(range(len(prompts)), numbers))
    conditions = torch.zeros(len(pictures), dtype=torch.int64) if kinds is None else kinds
    return ImageBatch(protocol.view(pictures / 2 + 0.5), asked.labels, asked.prompts, conditions)


def _references(student: Student, eyes: Eyes) -> Iterator[ImageBatch]:
    """All images of the named reference, those of the protocol, or the training images, in one shape as samples are."""
    reference, data, own = (
        student.config.evaluate.reference,
        student.config.data,
        _protocol(student.config.evaluate).own,
    )
    if reference is not None:
        assert eyes.extractor is not None
        yield from image_batches(open_images(reference), Reading(BATCH, eyes.extractor.resizes))
        return
    if own is not None:
        yield from own().batches(range(own().total))
        return
    if not data.has_images:
        raise UserError(
            "evaluate has nothing to compare with, because the data has no images: give evaluate.reference=FOLDER with "
            "real images, or samples of the teacher"
        )
    numbers = student.config.chosen
    data, there = of_one_shape(data), range(len(data)) if numbers is None else numbers.tolist()
    count = min(len(there), REFERENCES)
    chosen = [there[i * len(there) // count] for i in range(count)]
    for start in range(0, count, BATCH):
        yield ImageBatch(eight_bit(data.items(chosen[start : start + BATCH]).images / 2 + 0.5), None)


def _report(student: Student, trained: Trained) -> None:
    """Teacher and student side by side: the student after each stage, the teacher at many steps and at as few."""
    protocol, folder = _protocol(student.config.evaluate), student.config.out / "report"
    assert protocol.own is not None
    options = _options(
        student.config.evaluate,
        num=protocol.own().total,
        batch_size=SAMPLES_AT_ONCE,
        device=str(student.device),
        gallery=SHOWN,
        out=folder,
    )
    report = compare(open_session(options, {}, Processes()), _sides(student, trained))
    assert report is not None
    sheet = folder / f"{options.protocol}.png"
    contact_sheet(report, folder).save(sheet)
    say(f"picture: {sheet}")


def _sides(student: Student, trained: Trained) -> Iterator[Side]:
    spec, teacher, few = student.config.evaluate, student.pipeline.denoiser(), len(student.plan.grids[0])
    halves = _protocol(student.config.evaluate).halves
    if halves is not None:
        yield floor(*halves(student.config.seed))
    for steps in dict.fromkeys((spec.teacher_steps, few)):
        sampled = partial(student.sample_teacher, teacher, steps=steps, guidance=spec.teacher_guidance)
        yield _side(student, "teacher", f"teacher, {steps_in_words(steps)}", teacher, steps, sampled)
    for name, weights in trained.weights.items():
        model = student.generator(weights)
        yield _side(student, "student", f"student after {name}", model, few, partial(student.sample, model))


def _side(
    student: Student,
    role: Role,
    title: str,
    model: NetworkDenoiser | Headed,
    steps: int,
    sampled: Callable[..., Tensor],
) -> Side:
    """A row of what is drawn by (conditioning, seeds) -> samples."""

    def draw(seeds: Sequence[int], numbers: Sequence[int]) -> ImageBatch:
        return _batch(student, sampled(student.condition(numbers), seeds=seeds), numbers)

    def asked(numbers: Sequence[int]) -> dict[str, Any]:
        items = student.asked(numbers)
        return {"labels": items.labels.tolist()} if items.labels is not None else {"prompts": items.prompts}

    source = DrawnSource(
        origin=Origin(f"{student.config.evaluate.protocol} {role}", "pipeline", first_seed=0, dtype="float32"),
        steps=steps,
        draw=draw,
        asked=asked,
        network=model.net,
        device=student.device,
        batch_size=SAMPLES_AT_ONCE,
    )
    return Side(title.replace(",", "").replace(" ", "-"), role, title, (source,))
