"""One evaluation from its options to its report."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from fastgen.errors import UserError

from . import report as reports
from .checks import check
from .clip import Reward
from .collect import Eyes, Seen
from .costs import Costs
from .figure import Figure
from .frechet import Target, require_same_features
from .imagesets import open_images
from .measure import Reference, measured_row, reference_row
from .options import Options
from .protocols import min_images, precision_of
from .provenance import provenance
from .report import ProtocolNote, Report, Row
from .session import Session, open_session
from .showcase import Showcase
from .sources import Draw, FileSource, PipelineSource, Role, Source, declared_steps, is_image_set, pipelines
from .statistics_file import load_statistics, save_statistics


@dataclass(frozen=True, eq=False)
class Side:
    """A source with its place in the report."""

    role: Role
    title: str
    source: Source


def evaluate(options: Options, *, rewards: Mapping[str, Reward] | None = None) -> Report | None:
    """Measures teacher and student, writes metrics.json after every row and prints the table.

    Args:
        rewards: scores (uint8 images [B, 3, H, W], prompts) -> [B] by name, beside those of the options.

    Returns:
        The report; None on all but the first of several processes.

    Raises:
        UserError: the options contradict each other, a file or model is unusable, or the report is in the way.
    """
    started = datetime.now(UTC)
    check(options)
    session = open_session(options, rewards or {})
    real = _reference(session)
    if real is None:
        for side in _sides(session):
            _collect(session, side)
        session.processes.leave()
        return None
    if options.save_stats:
        save_statistics(options.save_stats, real.statistics)
        print(f"statistics of the reference are in {options.save_stats}")
    report = _measure(session, real, started)
    print(reports.table(report))
    if options.generated or options.held_out:
        print(f"all figures are in {options.out / reports.FILE}")
    session.processes.leave()
    return report


def _measure(session: Session, real: Reference, started: datetime) -> Report:
    """The first process's part: every row measured, the report written after each."""
    options = session.options
    showcase = Showcase(options.out, count=options.gallery, seed=options.seed)
    report = Report(options, _protocol(session, real), (reference_row(session, real),), None, {})
    for side in _sides(session):
        seen, ledgers = _collect(session, side)
        assert seen is not None
        _refuse_short(session, seen, side)
        teacher = _first_teacher(report.rows)
        row = measured_row(session, side.role, side.title, side.source.origin, seen, real, teacher)
        if ledgers:
            row = replace(row, bill=Costs.bill(ledgers, options.batch_size))
        if options.gallery:
            _show(showcase, side, row.id, seen, real)
        report = replace(
            report,
            rows=(*report.rows, row),
            gallery=showcase.as_json(session.extractor.classes),
            provenance=provenance(session, real, started),
        )
        reports.write(report, options.out)
    if options.gallery and real.features is not None:
        showcase.add_neighbours(options.reference, skipped=real.seen.skipped if real.seen else ())
    return report


def _collect(session: Session, side: Side) -> tuple[Seen | None, list[Costs]]:
    """What all processes saw and spent, on the first one."""
    seen = session.see(side.source, session.options.num, side.title)
    ledgers = session.processes.gather(side.source.costs)
    return seen, [ledger for ledger in ledgers if ledger is not None and ledger.images]


def _show(showcase: Showcase, side: Side, row: str, seen: Seen, real: Reference) -> None:
    if real.seen is not None and real.seen.pictures:
        showcase.add_row("real", real.seen, None)
    showcase.add_row(row, seen, None if side.role == "real" else real.features)
    if isinstance(side.source, PipelineSource):
        showcase.add_strip(row, side.source)


def _reference(session: Session) -> Reference | None:
    """The real images as the first process knows them; None on the others."""
    options = session.options
    if not options.reference_is_statistics:
        total = len(open_images(options.reference))
        session.refuse_small(total)
        seen = session.see(FileSource(options.reference, session.reading()), total, "real")
        if seen is None or seen.moments is None:
            return None
        statistics = seen.moments.statistics(session.identity)
        return Reference(Target.of(statistics, device=session.device), seen, named=True)
    statistics = load_statistics(options.reference)
    require_same_features(statistics, extractor=session.identity, dim=session.extractor.dim)
    if statistics.count is not None:
        session.refuse_small(statistics.count)
    pixels = None
    if options.real_images is not None:
        source = FileSource(options.real_images, session.reading())
        pixels = session.see(source, len(open_images(options.real_images)), "real images", Eyes(None))
    if not session.processes.first:
        return None
    return Reference(Target.of(statistics, device=session.device), pixels, named=statistics.extractor is not None)


def _sides(session: Session) -> Iterator[Side]:
    """Held-out real images, the teacher at many steps and at the student's, the student."""
    options = session.options
    if options.held_out is not None:
        yield Side("real", "held-out", FileSource(options.held_out, session.reading()))
    few = () if options.student is None else options.steps or declared_steps(options.student)
    if options.teacher is not None:
        many = tuple(dict.fromkeys((*options.teacher_steps, *few)))
        yield from _generated(session, "teacher", options.teacher, many, options.teacher_guidance)
    if options.student is not None:
        yield from _generated(session, "student", options.student, few, options.guidance)


def _generated(
    session: Session, role: Role, path: str, steps: tuple[int, ...], guidance: float | None
) -> Iterator[Side]:
    if is_image_set(path):
        yield Side(role, role, FileSource(Path(path), session.reading(), session.request.prompts))
        return
    draw = Draw(
        seed=session.options.seed,
        batch_size=session.options.batch_size,
        device=session.device,
        dtype=getattr(torch, session.options.dtype),
        request=session.request,
    )
    for source in pipelines(path, draw, steps=steps, guidance=guidance):
        counted = "step" if source.steps == 1 else "steps"
        title = role if source.steps is None else f"{role}, {source.steps} {counted}"
        yield Side(role, title, source)


def _refuse_short(session: Session, seen: Seen, side: Side) -> None:
    """Rows of another N cannot stand beside these: images that were skipped must be replaced."""
    if seen.count < session.options.num:
        raise UserError(
            f"Only {seen.count:,} images of {side.source.origin.path} could be used, {len(seen.skipped):,} were "
            f"skipped, the first being {seen.skipped[0].name}; every row needs {session.options.num:,}. Add images, or "
            f"compare everything at --num {seen.count}."
        )


def _first_teacher(rows: tuple[Row, ...]) -> Mapping[str, Figure]:
    return next((row.figures for row in rows if row.role == "teacher"), {})


def _protocol(session: Session, real: Reference) -> ProtocolNote:
    options, extractor = session.options, session.extractor
    return ProtocolNote(
        name=options.protocol,
        extractor=session.identity,
        dim=extractor.dim,
        resizes=extractor.resizes,
        precision=precision_of(options),
        min_images=min_images(options, extractor.dim),
        reference_extractor=real.statistics.extractor if real.named else None,
        classes=tuple(extractor.classes),
        clip=None if session.eyes.clip is None else session.eyes.clip.identity,
    )
