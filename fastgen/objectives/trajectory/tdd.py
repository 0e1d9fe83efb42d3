"""TDD: target-driven distillation (Wang et al. 2024, arXiv:2409.01347).

Times are mapped only to times that the student will stop at, whatever of its declared step counts it is run with,
and a little below them, so that stochastic samplers find a trained target too. Where the condition is dropped, the
teacher's guidance cancels, so that the student keeps an unguided unconditional mode.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models.roles import Roles
from ...process import Time
from ..parts.adversarial import above, check_adversarial, consistency_terms, discriminator_loss, turns
from ..parts.base import Batch, Terms, Turn
from ..parts.distances import DistanceName
from ..parts.flow_map import Interval, Jumps, cells, drawn_cell, edges_of, jumps, noised, origin, stops_of
from ..parts.gan import GAN, AnyGAN, starts
from ..parts.needs import Needs
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName


@dataclass(frozen=True)
class TargetDriven:
    """TDD; the paper declares 4 to 8 steps for one student, which steps deterministically.

    Args:
        guidance: of the teacher; the paper's 3.5 is 4.5 in Diffusers' convention.
        grid: solver steps from noise to data, rounded up to a whole number in each of the student's steps.
        solver: of one of them.
        window: targets lie at most so far below the highest that the teacher's step does not pass: 260 of 1000 steps.
        jitter: eta: a target s becomes (1 - eta u) s with u uniform in [0, 1].
        dropout: share of rows without condition.
        distance: between the two jumps.
        huber: c of the Huber distances.
        gan: adversarial term, compared up to the longest of the student's even steps above the target.
    """

    guidance: AnyScale = Guidance(4.5, 4.5)
    grid: int = 250
    solver: SolverName = "ddim"
    window: float = 0.26
    jitter: float = 0.3
    dropout: float = 0.2
    distance: DistanceName = "huber"
    huber: float = 1e-3
    gan: AnyGAN = GAN(weight=0.1, learned=1.0, kind="hinge")

    def __post_init__(self) -> None:
        check_adversarial(self)
        if not (0 <= self.jitter <= 1 and 0 <= self.dropout <= 1):
            raise ValueError(f"jitter is {self.jitter} and dropout {self.dropout}: both lie in [0, 1]")

    @property
    def cycle(self) -> tuple[Turn, ...]:
        return turns(self)

    @property
    def needs(self) -> Needs:
        own = Needs(images=True, real_score=True, sampler="ode", null=self.dropout > 0)
        return own | starts(self.gan) | self.guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        ends = self._jumps(roles, batch)
        return consistency_terms(self, roles, batch, ends, until=above(ends.s, longest_step(roles)))

    def discriminator(self, roles: Roles, batch: Batch) -> Terms:
        with torch.no_grad():
            ends = self._jumps(roles, batch)
        return discriminator_loss(self.gan, roles, batch, ends, until=above(ends.s, longest_step(roles)))

    def _jumps(self, roles: Roles, batch: Batch) -> Jumps:
        if self.dropout:
            rows = torch.rand(batch.size, generator=batch.rng, device=batch.rng.device) < self.dropout
            batch = replace(batch, cond=batch.cond.dropped(rows))
        t, r = drawn_cell(cells(edges_of(roles, batch), self.grid), batch, roles.process)
        x_t, field = noised(roles, batch, t).x_t, self.guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, x_t, t, r)
        s = self.targets(roles, batch, r)
        return jumps(roles, batch, Interval(t, r, s), x_t, x_r, ema=0.0, scalars=self.guidance.tell(batch, field))

    def targets(self, roles: Roles, batch: Batch, r: Time) -> Time:
        """For each row the highest of the student's times below r, or one in the window below it, a little lower."""
        stops = stops_of(roles, batch)
        allowed = in_window(stops, r, self.window)
        drawn = torch.multinomial(allowed.double(), 1, generator=batch.rng)[:, 0]
        u = torch.rand(len(r), generator=batch.rng, device=r.device, dtype=torch.float64)
        s: Tensor = stops[drawn] * (1 - self.jitter * u)
        return s.clamp(min=origin(roles.process).to(r.device))


def in_window(stops: Tensor, r: Time, window: float) -> Tensor:
    """Which of the ascending stops [k], from clean data on, are targets of each r: [B, k]."""
    reached = stops <= r[:, None]
    highest = stops[reached.sum(dim=1) - 1]
    return reached & (stops >= highest[:, None] - window)


def longest_step(roles: Roles) -> float:
    """Of even steps, as many as in the student's shortest grid."""
    return 1 / min(len(grid) for grid in roles.student.grids)
