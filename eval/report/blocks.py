"""One row from several blocks of seeds: means, their spread, and the value of every block."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, stdev

from ..measures.figure import Figure
from ..rows import Row


def pooled(blocks: Sequence[Row]) -> Row:
    """The rows of a pipeline's blocks as one; a single one as it is.

    Images are counted per block, because a Frechet distance depends on their number. Spectrum and tables by class and
    prompt are the first block's. A figure that some block lacks is not measured.
    """
    first = blocks[0]
    if len(blocks) == 1:
        return first
    missing = {name: reason for block in blocks for name, reason in block.not_measured.items()}
    return replace(
        first,
        metrics={
            name: mean_figure([block.metrics[name] for block in blocks])
            for name in first.metrics
            if all(name in block.metrics for block in blocks)
        },
        not_measured=missing,
        flagged=tuple(
            replace(one, image=one.image + (block.source.first_seed or 0) - (first.source.first_seed or 0))
            for block in blocks
            for one in block.flagged
        ),
    )


def mean_figure(figures: Sequence[Figure]) -> Figure:
    """The mean of two or more figures, the mean of their intervals (one block's, typically), and their spread."""
    return Figure(
        value=fmean(figure.value for figure in figures),
        low=_mean([figure.low for figure in figures]),
        high=_mean([figure.high for figure in figures]),
        details=figures[0].details,
        spread=stdev(figure.value for figure in figures),
        values=tuple(figure.value for figure in figures),
    )


def _mean(ends: Sequence[float | None]) -> float | None:
    known = [end for end in ends if end is not None]
    return fmean(known) if len(known) == len(ends) else None
