"""Regression on lines: the points between two ends, whose clean sample and noise are the same all along."""

from dataclasses import replace

from torch import Tensor

from ...models.calls import NONE, Scalars, through
from ...models.roles import Roles
from ...process import ROWS, AnyTimeLaw, Prediction, Time, laid
from .base import Batch
from .ops import RowName


def line_loss(
    roles: Roles,
    batch: Batch,
    line: Prediction,
    *,
    until: Time,
    law: AnyTimeLaw,
    space: RowName,
    scalars: Scalars = NONE,
) -> Tensor:
    """Mean square of what the generator says wrong of a point of each line.

    Args:
        line: at its beginning, the prediction whose step leads to its end, see `solvers.landing_on`.
        until: times [B] of the ends.
        law: times of the points; its [0, 1] is laid over [until, beginning].
        space: row in which errors are squared.
        scalars: what the generator is told beside the time.
    """
    t = laid(law, law.sample(roles.process, batch.size, batch.rng), until, line.t)
    there, row = replace(line, t=t), ROWS[space]
    error = through(roles.generator, line.at(t), t, batch.cond, scalars).output(row) - there.output(row)
    return error.square().mean()
