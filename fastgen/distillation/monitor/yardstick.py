"""How good a generator is while it trains: few samples of the same seeds, seen by every process and judged by one."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.collect import Seen
from eval.comparison import Comparison, Metric
from eval.images.decode import ImageBatch
from eval.measure import figures_of
from eval.measures.frechet import Target
from eval.measures.statistics_file import load_statistics
from eval.metrics import chosen

from ...config.evaluate import EvaluateConfig
from ...engine.distributed import share
from ...engine.quality import Yardstick
from ...engine.stage import Stage
from ...errors import UserError
from ..student import Student
from .view import NotFiniteError, batch_of, eyes_of, protocol_of, references, seen_of

GAPS: Mapping[str, Callable[[float], float]] = {  # what is better -> how far a value is from perfect
    "lower": lambda value: value,
    "higher": lambda value: -value,
    "one": lambda value: abs(value - 1),
    "zero": abs,
}


@dataclass(frozen=True)
class Decisive:
    """The figure that decides which weights are the best.

    Attributes:
        better: what of it is better, a key of `GAPS`.
    """

    name: str
    better: str


def yardstick_of(student: Student, *, here: bool) -> Yardstick:
    """The yardstick that the config's `evaluate` asks for.

    Args:
        student: student of the run.
        here: whether this process is the one that measures, and so needs references.

    Raises:
        UserError: the metric is unknown, or extractor or references are missing.
    """
    protocol, decisive = protocol_of(student.config.evaluate), decisive_of(student.config.evaluate)
    metrics = chosen((*protocol.watched, decisive.name), clip=True, of=protocol.metrics)
    observer = Observer(student, metrics, decisive.name)
    figures = Judge(observer).figures if here else _not_here
    return Yardstick(observer.look, figures, decisive.name, GAPS[decisive.better])


def decisive_of(spec: EvaluateConfig) -> Decisive:
    """The figure that `evaluate.metric` names.

    Raises:
        UserError: the protocol does not have it.
    """
    protocol, blind = protocol_of(spec), {"clip", "rewards"} - {spec.protocol}
    usable = [metric for metric in protocol.metrics if blind.isdisjoint(metric.columns)]
    known = {name: about.better for metric in usable for name, about in metric.figures.items()}
    name = protocol.watched[0] if spec.metric == "frechet" else spec.metric
    if name not in known:
        raise UserError(f"evaluate.metric is {name}, which this protocol does not have: use {', '.join(known)}")
    return Decisive(name, known[name])


class Observer:
    """Looks at samples through the protocol's extractor; every process does, at its share of them."""

    def __init__(self, student: Student, metrics: tuple[Metric, ...], decisive: str) -> None:
        self.student, self.metrics, self.decisive = student, metrics, decisive
        self.eyes, self.identity = eyes_of(student)

    def look(self, stage: Stage) -> Seen | None:
        """What is seen of this process's whole batches of samples; None where one is not finite."""
        batches = self.student.batches(self.student.config.evaluate.num)
        mine = [batches[number] for number in share(len(batches))]
        try:
            return seen_of(self._samples(stage, mine), self.eyes, self.metrics, first=mine[0].start if mine else 0)
        except NotFiniteError:
            return None

    def _samples(self, stage: Stage, batches: Iterable[range]) -> Iterator[ImageBatch]:
        """What the generator draws for the classes or the data's prompts in turn, of the samples of these numbers."""
        for numbers in batches:
            yield batch_of(self.student, self.student.drawn(stage.roles.generator, numbers), numbers)


class Judge:
    """Compares what an observer sees with the references."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        student, eyes = observer.student, observer.eyes
        reference = student.config.evaluate.reference
        self._real: Seen | None = None
        if reference is not None and reference.suffix == ".npz":
            statistics = load_statistics(reference)
        else:
            self._real = real = seen_of(references(student, eyes), eyes, observer.metrics)
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


def _not_here(parts: Sequence[Seen | None]) -> Mapping[str, float]:
    raise AssertionError("only the first process measures")
