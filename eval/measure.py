"""From what was collected of an image set to its row of the report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import Tensor

from .collect import Seen
from .comparison import Comparison, Figures, Metric
from .images.sources import Source
from .measures.classes import per_class
from .measures.figure import Figure, NotMeasured
from .measures.frechet import Statistics, Target
from .measures.spectrum import radial_profile, spectrum_db
from .rows import ClassRow, Levels, Origin, Power, Role, Row
from .session import Session


@dataclass(frozen=True, eq=False)
class Reference:
    """The real images: statistics of their features, and what else is known of them.

    Attributes:
        seen: None for a statistics file; only pixels of --real-images beside one.
        named: whether the statistics say which extractor made them.
    """

    target: Target
    seen: Seen | None
    named: bool

    @property
    def statistics(self) -> Statistics:
        return self.target.statistics

    @property
    def features(self) -> Tensor | None:
        """[N, d] on the CPU, where they were kept."""
        return None if self.seen is None else self.seen.columns.get("features")


def reference_row(session: Session, real: Reference) -> Row:
    """The row of the real images: figures that compare with nothing."""
    stored = session.options.reference_is_statistics
    origin = Origin(str(session.options.reference), "statistics" if stored else "images")
    if real.seen is None or stored:
        return Row("real", "real", "real", origin, real.statistics.count, {}, {}, spectrum=_levels(real.seen, None))
    alone = tuple(metric for metric in session.metrics if not metric.against_real)
    figures, missing = figures_of(alone, _comparison(session, real.seen, real, {}))
    return Row(
        id="real",
        role="real",
        title="real",
        source=origin,
        num=real.seen.count,
        metrics=figures,
        not_measured=missing,
        skipped=real.seen.skipped,
        flagged=real.seen.flagged,
        spectrum=_levels(real.seen, None),
        per_class=_classes(session, real.seen),
    )


def measured_row(
    session: Session, role: Role, title: str, source: Source, seen: Seen, real: Reference, teacher: Mapping[str, Figure]
) -> Row:
    """The row of images compared with the real ones and, where it is there, with the teacher's first row."""
    figures, missing = figures_of(session.metrics, _comparison(session, seen, real, teacher))
    name = title if role == "real" else role
    return Row(
        id=name if source.steps is None else f"{name}-{source.steps}",
        role=role,
        title=title,
        source=source.origin,
        steps=source.steps,
        num=seen.count,
        metrics=figures,
        not_measured=missing,
        skipped=seen.skipped,
        flagged=seen.flagged,
        spectrum=_levels(seen, real.seen),
        per_class=_classes(session, seen),
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


def _classes(session: Session, seen: Seen) -> tuple[ClassRow, ...] | None:
    if "labels" not in seen.columns:
        return None
    features, logits = seen.columns.get("features"), seen.columns.get("logits")
    home: torch.device = session.device
    return per_class(
        seen.columns["labels"], None if features is None else features.to(home), logits, session.extractor.classes
    )
