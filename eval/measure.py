"""From what was collected of an image set to its row of the report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from torch import Tensor

from .collect import Seen
from .comparison import Comparison, Figures, Metric
from .images.sources import Picture, RealSource, Source
from .measures.figure import Figure, NotMeasured
from .measures.frechet import Statistics, Target
from .measures.prompts import per_prompt
from .measures.spectrum import radial_profile, spectrum_db
from .rows import ClassRow, Levels, Origin, Power, PromptRow, Role, Row
from .session import Session


@dataclass(frozen=True, eq=False)
class Reference:
    """The real images: statistics of their features, and what else is known of them.

    Attributes:
        seen: None for a statistics file; only pixels of --real-images beside one.
        named: whether the statistics say which extractor made them.
        source: the images themselves; None for a statistics file.
    """

    origin: Origin
    target: Target
    seen: Seen | None
    named: bool = True
    source: RealSource | None = None

    @property
    def statistics(self) -> Statistics:
        return self.target.statistics

    @property
    def features(self) -> Tensor | None:
        """[N, d] on the CPU, where they were kept."""
        return None if self.seen is None else self.seen.columns.get("features")

    @property
    def pictures(self) -> Iterator[Picture]:
        """The images that were looked at, in order."""
        unread = {skip.name for skip in self.seen.skipped} if self.seen else set()
        yield from self.source.pictures(unread) if self.source else ()


@dataclass(frozen=True, eq=False)
class Side:
    """A place in the report and its source: one, or a pipeline's for each block of seeds.

    Attributes:
        id: unique, also the folder of its images.
        num: images of each source; None is as many as the options say.
        against: real images that stand in the place of the reference.
    """

    id: str
    role: Role
    title: str
    sources: tuple[Source, ...]
    num: int | None = None
    against: RealSource | None = None

    @property
    def path(self) -> str:
        return self.sources[0].origin.path


def reference_row(session: Session, real: Reference) -> Row:
    """The row of the real images: figures that compare with nothing."""
    if real.seen is None or real.source is None:
        count, levels = real.statistics.count, _levels(real.seen, None)
        return Row("real", "real", "real", real.origin, count, {}, {}, spectrum=levels)
    alone = tuple(metric for metric in session.metrics if not metric.against_real)
    side = _comparison(session, real.seen, real, {})
    figures, missing = figures_of(alone, side)
    return Row(
        id="real",
        role="real",
        title="real",
        source=real.origin,
        num=real.seen.count,
        metrics=figures,
        not_measured=missing,
        skipped=real.seen.skipped,
        flagged=real.seen.flagged,
        spectrum=_levels(real.seen, None),
        per_class=_classes(session, side),
    )


def measured_row(
    session: Session, side: Side, source: Source, seen: Seen, real: Reference, teacher: Mapping[str, Figure]
) -> Row:
    """The row of images compared with the real ones and, where it is there, with the teacher's first row."""
    compared = _comparison(session, seen, real, teacher)
    figures, missing = figures_of(session.metrics, compared)
    return Row(
        id=side.id,
        role=side.role,
        title=side.title,
        source=source.origin,
        steps=source.steps,
        num=seen.count,
        metrics=figures,
        not_measured=missing,
        skipped=seen.skipped,
        flagged=seen.flagged,
        spectrum=_levels(seen, real.seen),
        per_class=_classes(session, compared),
        per_prompt=_prompts(seen),
    )


def figures_of(metrics: Sequence[Metric], comparison: Comparison) -> tuple[dict[str, Figure], dict[str, str]]:
    """Figures by name, and why others are missing."""
    figures: dict[str, Figure] = {}
    missing: dict[str, str] = {}
    for metric in metrics:
        for name, found in _measured(metric, comparison).items():
            if isinstance(found, Figure):
                figures[name] = found
            else:
                missing[name] = str(found)
    return figures, missing


def _measured(metric: Metric, comparison: Comparison) -> Figures:
    try:
        return metric.measure(comparison)
    except NotMeasured as reason:
        return dict.fromkeys(metric.figures, reason)
    except ValidationError:  # of a figure that is no number
        return dict.fromkeys(metric.figures, NotMeasured("of these images it is not a finite number"))


def _comparison(session: Session, seen: Seen, real: Reference, teacher: Mapping[str, Figure]) -> Comparison:
    assert seen.moments is not None
    return Comparison(
        seen=seen,
        statistics=seen.moments.statistics(session.identity),
        target=real.target,
        real=real.seen,
        teacher=teacher,
        classes=session.extractor.classes,
        device=session.device,
        seed=session.options.seed,
    )


def _levels(seen: Seen | None, real: Seen | None) -> Levels | None:
    if seen is None or seen.spectrum is None:
        return None
    spectrum = seen.spectrum.spectrum()
    base = None if real is None or real.spectrum is None else real.spectrum.spectrum()
    comparable = base is not None and base.power.shape == spectrum.power.shape
    bands = spectrum_db(spectrum, base) if base and comparable else ()
    radial = tuple(Power(cycles, power) for cycles, power in enumerate(radial_profile(spectrum), start=1))
    return Levels(min(spectrum.power.shape), bands, radial)


def _prompts(seen: Seen) -> tuple[PromptRow, ...] | None:
    alignment, conditions = (seen.columns.get(name) for name in ("alignment", "conditions"))
    if alignment is None or conditions is None or not seen.prompts:
        return None
    return per_prompt(alignment, conditions, seen.prompts)


def _classes(session: Session, side: Comparison) -> tuple[ClassRow, ...] | None:
    try:
        return session.protocol.by_class(side)
    except NotMeasured:
        return None
