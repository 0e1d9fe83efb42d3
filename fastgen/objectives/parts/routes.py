"""States that the teacher comes by on its own way from noise to data."""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from ...models.conditioning import sent
from ...models.roles import Roles
from ...process import Flow, Latent, Prediction, Process, Time, even_grid
from ...seeds import uniform
from .base import Batch
from .flow_map import origin
from .solvers import Field


def route_of(process: Process, intervals: int, *, shift: float) -> Time:
    """The descending edges [intervals + 1] of even flow times, at the same noise levels of any process."""
    levels = process.time_of(Flow().logsnr(even_grid(intervals, shift=shift)))
    return torch.cat([levels, levels.new_zeros(1)])


def teacher_states(roles: Roles, batch: Batch, field: Field, edges: Time) -> Iterator[tuple[Latent, Prediction]]:
    """The samples [B, ...] that the teacher comes by, and what it believes of each; the first are noise.

    Its deterministic steps lead into each further interval between the edges, to a time drawn there.
    """
    process, edges = roles.process, sent(edges, batch.rng.device)
    t = batch.full(roles.plan.grids[0][0])
    x_t = process.prior(batch.noise(), t)
    belief = field(x_t, t)
    yield x_t, belief
    for high, low in pairwise(edges[1:]):
        u = uniform(batch.rng, batch.size, dtype=torch.float64)
        t = (high - (high - low) * u).clamp(min=origin(process, u.device))
        x_t = belief.at(t)
        belief = field(x_t, t)
        yield x_t, belief


def in_rows(beliefs: Sequence[Prediction]) -> Prediction:
    """One after the other."""
    t, x0, eps = (torch.cat(parts) for parts in zip(*((b.t, b.x0, b.eps) for b in beliefs), strict=True))
    return Prediction(beliefs[0].process, t, x0, eps)
