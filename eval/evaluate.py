"""One evaluation from its options to its report."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastgen.errors import UserError, say
from fastgen.models.pipelines.opening import Opened
from fastgen.peers import together
from fastgen.sampling.call import Asked, steps_in_words

from . import metrics_json
from .checks import check
from .collect import Seen
from .columns import Eyes
from .images.costs import Costs
from .images.drawing import DrawnSource
from .images.pipelines import Draw, PipelineSource, declared_steps, noted_size, pipelines
from .images.sources import FileSource, RealSource, Source, is_image_set
from .measure import Reference, Side, measured_row, reference_row
from .measures.figure import Figure
from .measures.frechet import Target, require_same_features
from .measures.statistics_file import load_statistics, save_statistics
from .metrics import catalogue
from .metrics_json import Protocol, Report
from .networks.clip import Reward
from .networks.protocols import min_images, precision_of
from .options import Options
from .page import html
from .processes import Processes
from .provenance import provenance
from .report.assertions import verdicts
from .report.blocks import pooled
from .report.showcase import STRIP, Showcase
from .report.table import table
from .rows import Origin, Role, Row
from .session import Session, open_session
from .training import training_of


def evaluate(options: Options, *, rewards: Mapping[str, Reward] | None = None) -> Report | None:
    """Measures teacher and student, writes metrics.json after every row, prints the table and writes report.html.

    Args:
        rewards: scores (uint8 images [B, 3, H, W], prompts) -> [B] by name, beside those of the options.

    Returns:
        The report; None on all but the first of several processes.

    Raises:
        UserError: the options contradict each other, a file or model is unusable, the report is in the way, or another
            process failed or is lost.
    """
    check(options)
    processes = Processes.join()
    with together(options.timeout):
        session = open_session(options, rewards or {}, processes)
        report = compare(session, _sides(session))
        processes.wait()
    processes.leave()
    return report


def compare(session: Session, sides: Iterable[Side]) -> Report | None:
    """Measures these sides as `evaluate` does teacher and student.

    Raises:
        UserError: a file or an image is unusable.
    """
    started, options = datetime.now(UTC), session.options
    real = _reference(session)
    if real is None:
        for side in sides:
            _compared_with(session, side, None)
            deque(_collected(session, side), maxlen=0)
        return None
    if options.save_stats:
        save_statistics(options.save_stats, real.statistics)
        say(f"statistics of the reference are in {options.save_stats}")
    report = _measure(session, sides, real, started)
    say(table(report, options))
    if len(report.rows) > 1:
        say(f"the report is in {html.write(options.out)}, all figures are in {options.out / metrics_json.FILE}")
    return report


def _measure(session: Session, sides: Iterable[Side], real: Reference, started: datetime) -> Report:
    """The first process's part: every row measured, the report written after each."""
    options = session.options
    showcase = Showcase(options.out, count=options.gallery, seed=options.seed, classes=session.extractor.classes)
    report = _report(session, real, (reference_row(session, real),), showcase, started)
    for side in sides:
        row = _row(session, side, real, _first_teacher(report.rows), showcase)
        report = _report(session, real, (*report.rows, row), showcase, started)
        report.write(options.out)
    if options.gallery and real.features is not None:
        showcase.add_neighbours(real.pictures)
    return report


def _report(session: Session, real: Reference, rows: tuple[Row, ...], showcase: Showcase, started: datetime) -> Report:
    """What is known after these rows."""
    return Report(
        protocol=_protocol(session, real),
        figures=catalogue(rows, session.protocol.metrics),
        rows=rows,
        gallery=showcase.gallery(),
        assertions=verdicts(session.options.assertions, rows),
        provenance=provenance(session, real, rows, started),
        training=training_of(rows, session.options.out),
    )


def _row(session: Session, side: Side, real: Reference, teacher: Mapping[str, Figure], showcase: Showcase) -> Row:
    """One row of the report from all blocks of seeds; the first one's pictures are shown."""
    blocks: list[Row] = []
    bill, compared = None, _compared_with(session, side, real)
    assert compared is not None
    for source, seen, ledgers in _collected(session, side):
        assert seen is not None
        _refuse_short(session, seen, side)
        blocks.append(measured_row(session, side, source, seen, compared, teacher))
        bill = Costs.bill(ledgers, session.options.batch_size) if ledgers else None
        if session.options.gallery and len(blocks) == 1 and side.against is None:
            _show(showcase, side, source, seen, real)
    first = side.sources[0]
    latency = map(first.latency, session.options.latency) if isinstance(first, PipelineSource) else ()
    return replace(pooled(blocks), costs=bill, nfe=None if bill is None else bill.nfe, latency=tuple(latency))


def _collected(session: Session, side: Side) -> Iterator[tuple[Source, Seen | None, list[Costs]]]:
    """What all processes saw of each source, on the first one, and what they have spent so far."""
    for number, source in enumerate(side.sources, start=1):
        title = side.title if len(side.sources) == 1 else f"{side.title}, seeds {number} of {len(side.sources)}"
        seen = session.see(source, side.num or session.options.num, title)
        ledgers = session.processes.gather(source.costs)
        yield source, seen, [ledger for ledger in ledgers if ledger is not None and ledger.images]


def _show(showcase: Showcase, side: Side, source: Source, seen: Seen, real: Reference) -> None:
    if real.seen is not None and real.seen.pictures:
        showcase.add_row("real", real.seen, None)
    showcase.add_row(side.id, seen, None if side.role == "real" else real.features)
    if isinstance(source, PipelineSource | DrawnSource):
        drawn = (image for batch in source.strip(STRIP) for image in batch.images)
        showcase.add_strip(side.id, dict(enumerate(drawn)), source.asked(range(showcase.count)))


def _compared_with(session: Session, side: Side, real: Reference | None) -> Reference | None:
    """The real images of a side: the reference, or its own."""
    return real if side.against is None else _looked_at(session, side.against, "what it is held against")


def _looked_at(session: Session, source: RealSource, title: str) -> Reference | None:
    """Real images as the first process knows them; None on the others."""
    seen = session.see(source, source.total, title)
    if seen is None or seen.moments is None:
        return None
    target = Target.of(seen.moments.statistics(session.identity), device=session.device)
    return Reference(source.origin, target, seen, source=source)


def _reference(session: Session) -> Reference | None:
    """What all rows are compared with, as the first process knows it; None on the others."""
    options = session.options
    if not options.reference_is_statistics:
        source = session.real()
        session.refuse_small(source.total)
        return _looked_at(session, source, "real")
    assert options.reference is not None
    statistics = load_statistics(options.reference)
    require_same_features(statistics, extractor=session.identity, dim=session.extractor.dim)
    if statistics.count is not None:
        session.refuse_small(statistics.count)
    pixels = None
    if options.real_images is not None:
        shown = FileSource(options.real_images, session.reading())
        pixels = session.see(shown, shown.total, "real images", Eyes(None))
    if not session.processes.first:
        return None
    origin, named = Origin(str(options.reference), "statistics"), statistics.extractor is not None
    return Reference(origin, Target.of(statistics, device=session.device), pixels, named)


def _sides(session: Session) -> Iterator[Side]:
    """Held-out real images, the teacher at many steps and at the student's, the student."""
    options = session.options
    if options.held_out is not None:
        yield Side("held-out", "real", "held-out", (FileSource(options.held_out, session.reading()),))
    elif options.reference is None and session.protocol.halves is not None:
        yield floor(*session.protocol.halves(options.seed))
    few = () if options.student is None else options.steps or declared_steps(options.student)
    if options.teacher is not None:
        many = tuple(dict.fromkeys((*options.teacher_steps, *few)))
        asked = _asked(options, options.teacher_guidance)
        size = {} if options.student is None else noted_size(options.student)
        yield from _generated(session, "teacher", options.teacher, many, asked, beside=size)
    if options.student is not None:
        yield from _generated(session, "student", options.student, few, _asked(options, options.guidance))


def floor(half: RealSource, other: RealSource) -> Side:
    """What real images would get: one half of the protocol's own beside the other."""
    return Side("held-out", "real", "real half against real half", (half,), num=half.total, against=other)


def _asked(options: Options, guidance: float | None) -> Asked:
    """What a pipeline's call is asked for, besides steps."""
    return Asked(
        guidance=guidance,
        negative_prompt=options.negative_prompt,
        height=options.height,
        width=options.width,
        frames=options.frames,
    )


def _generated(
    session: Session,
    role: Role,
    path: str,
    steps: tuple[int, ...],
    asked: Asked,
    *,
    beside: Mapping[str, Any] | None = None,
) -> Iterator[Side]:
    if is_image_set(path):
        yield Side(role, role, role, (FileSource(Path(path), session.reading(), session.request.prompts),))
        return
    draw = Draw(
        seed=session.options.seed,
        batch_size=session.options.batch_size,
        device=session.device,
        dtype=session.options.dtype,
        request=session.request,
        view=session.protocol.view,
    )
    below = (session.options.base, session.options.stack) if role == "student" else ()
    for source in pipelines(Opened(path, *below), draw, steps=steps, asked=asked, beside=beside):
        blocks = tuple(source.at(seed) for seed in session.options.first_seeds)
        if source.steps is None:
            yield Side(role, role, role, blocks)
        else:
            yield Side(f"{role}-{source.steps}", role, f"{role}, {steps_in_words(source.steps)}", blocks)


def _refuse_short(session: Session, seen: Seen, side: Side) -> None:
    """Rows of another N cannot stand beside these: images that were skipped must be replaced.

    Those that a checker blackened are left out on request, and cannot be replaced without other seeds.

    Raises:
        UserError: the side has too few images.
    """
    blackened = len(seen.flagged) if session.options.skip_flagged else 0
    if blackened:
        session.refuse_small(seen.count)
    if seen.count + blackened < (side.num or session.options.num):
        raise UserError(
            f"only {seen.count:,} images of {side.path} could be used, {len(seen.skipped):,} were "
            f"skipped, the first being {seen.skipped[0].name}; every row needs {session.options.num:,}. Add images, or "
            f"compare everything at --num-images {seen.count}."
        )


def _first_teacher(rows: tuple[Row, ...]) -> Mapping[str, Figure]:
    return next((row.metrics for row in rows if row.role == "teacher"), {})


def _protocol(session: Session, real: Reference) -> Protocol:
    options, extractor = session.options, session.extractor
    return Protocol(
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
