"""TBCM: sCM on the teacher's own trajectories, without images (Tang et al. 2025, arXiv:2511.20410, and its code).

From noise the teacher takes a deterministic step into each interval of a route, to a time drawn there. All that it
comes by after the noise are states that `scm` is trained at; the teacher's velocity there is known already.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch

from ...models.conditioning import Conditioning
from ...models.roles import Roles
from ...process import Latent, Prediction
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.derivative import check_step, needs_fine_times
from ..parts.needs import Needs
from ..parts.routes import in_rows, route_of, teacher_states
from ..parts.solvers import AnyScale, Field, Guidance
from ..parts.velocity import Trajectory
from .scm import Norm, State, adaptive_mean, errors_at


@dataclass(frozen=True)
class TrajectoryBackward:
    """TBCM; from prompts or labels alone.

    Args:
        route: intervals of the teacher's way from noise to data; one sample makes route - 1 rows of the generator's.
        shift: shift of the route's even flow times towards the noise.
        teacher_guidance: guidance of the teacher; the paper's is told.
        sigma_data, warmup, normaliser, norm, derivative_step, weighting: as in sCM.
    """

    route: int = 16
    shift: float = 2.5
    teacher_guidance: AnyScale = Guidance(4.0, 5.0, told=True)
    sigma_data: float = 1.0
    warmup: int = 4_000_000
    normaliser: float = 0.1
    norm: Norm = "sample"
    derivative_step: float | None = None
    weighting: Literal["adaptive", "uniform"] = "adaptive"

    def __post_init__(self) -> None:
        check_step(self.derivative_step)
        if self.route < 2 or self.shift <= 0:
            raise ValueError(
                f"route is {self.route} and shift {self.shift:g}: need at least 2 intervals, the first of which only "
                "leads away from the noise, and a shift above 0"
            )

    @property
    def cycle(self) -> Cycle:
        return (("generator", "log_variance"),) if self.weighting == "adaptive" else ONE_TURN

    @property
    def needs(self) -> Needs:
        own = Needs(real_score=True, log_variance=self.weighting == "adaptive")
        return own | self.teacher_guidance.needs() | needs_fine_times(self.derivative_step)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        field = self.teacher_guidance.field(roles, batch)
        x_t, beliefs = zip(*islice(self._states(roles, batch, field), 1, None), strict=True)
        belief = in_rows(beliefs)
        scalars = {name: w.repeat(len(x_t)) for name, w in self.teacher_guidance.scalars(batch, field).items()}
        rows = replace(batch, cond=Conditioning.cat([batch.cond] * len(x_t)))
        start = State(torch.cat(x_t), belief.t)
        errors = errors_at(self, roles, rows, start, Trajectory(belief, scalars))
        adaptive = self.weighting == "adaptive"
        mean = adaptive_mean(roles, start.t, errors, sigma_data=self.sigma_data) if adaptive else errors.mean()
        return {"tangent": mean}

    def _states(self, roles: Roles, batch: Batch, field: Field) -> Iterator[tuple[Latent, Prediction]]:
        """The samples [B, ...] that the teacher comes by, and what it believes of each; the first are noise."""
        return teacher_states(roles, batch, field, route_of(roles.process, self.route, shift=self.shift))
