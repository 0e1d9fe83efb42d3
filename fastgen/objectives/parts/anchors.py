"""What a generator learns of the teacher's own trajectories beside a matching of distributions."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import ROWS, Latent, Prediction
from ...seeds import uniform
from ...unread import names_of, refuse_unread
from .base import Batch, Terms, shorthand
from .distances import huber
from .flow_map import cells, edges_of
from .needs import Needs
from .rollout import sampled
from .solvers import SOLVERS, AnyScale, Field, Guidance, SolverName, landing_on

VELOCITY = ROWS["difference"]


def check_anchor(anchor: int, grid: int) -> None:
    """Raises ValueError for an anchor that lies not on the teacher's trajectory."""
    if not 1 <= anchor <= grid:
        raise ValueError(f"anchor is {anchor} of {grid} steps of the grid: need 1 <= anchor <= grid")


def anchored_start(field: Field, batch: Batch, noise: Latent, edges: Tensor, *, anchor: int, grid: int) -> Prediction:
    """What a first call has to say for its step to lead to the teacher's trajectory after `anchor` solver steps.

    DP-DMD (2026, arXiv:2602.03139). The trajectory begins with unit noise [B, ...] at the first of the descending
    edges [n + 1] and has `grid` steps over all of them, rounded up to a whole number between two.
    """
    process = field.model.process
    times = [batch.full(time) for time in cells(edges, grid)[: anchor + 1].tolist()]
    start = x = process.prior(noise, times[0])
    for here, following in pairwise(times):
        x = SOLVERS["ddim"](field, x, here, following)
    return landing_on(process, start, times[0], x, times[-1])


def check_on(term: Any, name: str) -> None:
    """Raises ValueError for settings of a term of weight 0, which has none."""
    if not term.weight:
        why, remedy = f"{name}.weight is 0", "set a weight above 0"
        refuse_unread(term, *names_of(term, "weight"), why=why, remedy=remedy, within=f"{name}.")


@dataclass(frozen=True)
class Diversity:
    """The student's first step is regressed to where the teacher's trajectory from the same noise leads.

    DP-DMD's term as a setting (2026, arXiv:2602.03139), of deterministic students: the mean square of the difference
    of velocities eps - x0. It keeps the teacher's variety, which is decided at the first step.

    Args:
        weight: weight of the term; 0 for none.
        anchor: solver steps of the teacher before it is met; more keep more variety, and more of its errors.
        grid: solver steps of the teacher from noise to data, rounded up to a whole number in each of the student's.
        teacher_guidance: guidance of the teacher.

    Raises:
        ValueError: a negative weight, an anchor beyond the grid, or guidance that the generator would be told.
    """

    weight: float = 0.05
    anchor: int = 5
    grid: int = 30
    teacher_guidance: AnyScale = Guidance()

    def __post_init__(self) -> None:
        check_weight("diversity.weight", self.weight)
        check_on(self, "diversity")
        check_anchor(self.anchor, self.grid)
        check_untold("diversity", self.teacher_guidance)

    @property
    def needs(self) -> Needs:
        return Needs(sampler="ode") | self.teacher_guidance.needs() if self.weight else Needs()

    def terms(self, roles: Roles, batch: Batch) -> Terms:
        """The weighed term, by a call of its own from fresh noise."""
        edges, noise = edges_of(roles, batch), batch.noise()
        t = batch.full(edges[0])
        field = self.teacher_guidance.field(roles, batch)
        aim = anchored_start(field, batch, noise, edges, anchor=self.anchor, grid=self.grid)
        said = through(roles.generator, roles.process.prior(noise, t), t, batch.cond)
        gap = said.output(VELOCITY) - aim.output(VELOCITY)
        return {"diversity": self.weight * gap.square().mean()}


@dataclass(frozen=True)
class Segments:
    """A step of the student ends where the teacher's first part of it and the student's own second part do.

    Intra-segment guidance of SenseFlow (2025, arXiv:2506.00523): from x_t at a stop of the student's own sampling the
    teacher goes to a time between that stop and the next, and the student, without gradient, on to the next; the
    student's deterministic step from x_t is regressed to that. It vanishes where both are the same exact flow; by one
    Euler step ("ddim"), the authors', that zero is shifted by the square of the teacher's part.

    Args:
        weight: weight of the term; 0 for none. The authors' is 1 for FLUX and 0.2 for SDXL; on the proof bed 0.1 trains
            two steps well, and 1, whose target outruns the matching, does not.
        teacher_guidance: guidance of the teacher; the authors draw it from 1 to 8 for FLUX and from 3 to 15 for SDXL.
        solver: solver of the teacher's part.
        substeps: solver steps of the teacher's part.
        margin: least share of a step that either of its parts has; 20 of 250 timesteps in the authors' code.
        huber: c of the distance sqrt(d^2 + c^2) - c, element by element, as in the authors' code; the paper squares d.

    Raises:
        ValueError: a negative weight, parts without length, or guidance that the generator would be told.
    """

    weight: float = 0.2
    teacher_guidance: AnyScale = Guidance()
    solver: SolverName = "heun"
    substeps: int = 1
    margin: float = 0.08
    huber: float = 1e-3

    def __post_init__(self) -> None:
        check_weight("segments.weight", self.weight)
        check_on(self, "segments")
        check_untold("segments", self.teacher_guidance)
        if not 0 < self.margin < 0.5 or self.substeps < 1 or self.huber <= 0:
            raise ValueError(
                f"segments.margin is {self.margin:g}, substeps {self.substeps} and huber {self.huber:g}: need 0 < "
                "margin < 0.5, substeps of at least 1 and huber > 0"
            )

    @property
    def needs(self) -> Needs:
        return self.teacher_guidance.needs() if self.weight else Needs()

    def terms(self, roles: Roles, batch: Batch) -> Terms:
        """The weighed term, at a stop of a rollout of its own."""
        edges = edges_of(roles, batch)
        depth = int(torch.randint(len(edges) - 1, (), generator=batch.shared_rng, device=batch.shared_rng.device))
        x_t, t = sampled(roles, batch, edges[:-1], depth=depth)
        end = batch.full(edges[depth + 1])
        share = self.margin + (1 - 2 * self.margin) * uniform(batch.rng, batch.size, dtype=torch.float64)
        middle = torch.lerp(t, end, share)
        field = self.teacher_guidance.field(roles, batch)
        x = SOLVERS[self.solver](field, x_t, t, middle, substeps=self.substeps)
        aim = look(roles.generator, x, middle, batch.cond).at(end)
        gap = through(roles.generator, x_t, t, batch.cond).at(end) - aim
        return {"segment": self.weight * huber(gap, self.huber).mean()}


def check_weight(name: str, weight: float) -> None:
    """Raises ValueError for a term that would be trained away from."""
    if weight < 0:
        raise ValueError(f"{name} is {weight:g}: a negative weight trains away from the teacher, need at least 0")


def check_untold(name: str, guidance: Guidance) -> None:
    """Raises ValueError for guidance that the generator would be told in one of its terms alone."""
    if guidance.told:
        raise ValueError(f"{name}.teacher_guidance.told is true, the scores are not: set it to false")


NO_DIVERSITY, NO_SEGMENTS = Diversity(0.0), Segments(0.0)


def _of_weight(kind: Callable[[float], object]) -> BeforeValidator:
    return BeforeValidator(lambda raw: shorthand(raw, kind))


AnyDiversity = Annotated[Diversity, _of_weight(Diversity)]
"""A diversity term as a config names it; a number is its weight."""
AnySegments = Annotated[Segments, _of_weight(Segments)]
"""Intra-segment guidance as a config names it; a number is its weight."""
