"""TCM: truncated consistency models (Lee et al. 2024, arXiv:2410.14895): a second stage for the noisy times alone.

A consistency model spends much of what it can hold on times where little noise is left, which no one-step student is
asked about. Here it is trained above a noise level t' only; what it has to agree with below is the consistency model
of the stage before, frozen, as its `real_score`: `carry: {real_score: generator}`, or the average with `ema`. At t' the
two have to agree too, or any constant would do. A student of two steps has its second one at t' or above.

The stage before may be `ct`, `cd` or another objective whose generator predicts the clean end of a trajectory. The
paper draws times from a heavy-tailed law, log-Student-t; Karras's ramp above t' is here.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import Karras, pad_like
from ...seeds import uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.curricula import AnyCurriculum, Ratio, apart
from ..parts.distances import DISTANCES, DistanceName, check_huber
from ..parts.flow_map import edges_of, noised, origin, same_masks
from ..parts.needs import Needs


@dataclass(frozen=True)
class TruncatedConsistency:
    """TCM's second stage.

    Args:
        truncation: t', in sigma / alpha; nothing below is trained.
        curriculum: which neighbours are drawn; times below t' count as t', and no average gives the target.
        boundary: weight of the agreement at t'.
        at_boundary: share of the samples that are there.
        distance: between two clean samples.
        huber: c of the Huber distances.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    truncation: float = 1.0
    curriculum: AnyCurriculum = Ratio(q=256.0, times=Karras(sigma_min=1.0))
    boundary: float = 0.1
    at_boundary: float = 0.25
    distance: DistanceName = "pseudo_huber"
    huber: float = 0.00054

    def __post_init__(self) -> None:
        check_huber(self)
        if self.curriculum.averaged:
            raise ValueError(
                f"curriculum {self.curriculum.law} gives its target by an average, here the generator and the stage "
                "before do: choose ratio or doubling"
            )
        if self.truncation <= 0 or self.boundary <= 0 or not 0 < self.at_boundary < 1:
            raise ValueError(
                f"truncation is {self.truncation:g}, boundary {self.boundary:g} and at_boundary {self.at_boundary:g}: "
                "need above 0, above 0, and a share in (0, 1), or nothing ties the generator to the stage before"
            )

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=True, succeeds=True, noise=self.truncation)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        process = roles.process
        lowest = process.time_of(-2 * batch.full(self.truncation).log())
        near = self.curriculum.neighbours(process, edges_of(roles, batch), batch)
        at_boundary = uniform(batch.rng, batch.size) < self.at_boundary
        t = torch.where(at_boundary, lowest, torch.maximum(near.t, lowest))
        r = torch.where(at_boundary, lowest, near.r)
        start = noised(roles, batch, t)
        x_r = process.renoise(batch.x0, r, start.eps)
        with same_masks(x_r):
            own = look(roles.generator, x_r, r, batch.cond).x0
            before = look(roles.real_score, x_r, r, batch.cond).x0
        aim = torch.where(pad_like((r < lowest) | at_boundary, own), before, own)
        aim = torch.where(pad_like(r <= origin(process, r.device), x_r), x_r, aim)
        gap = through(roles.generator, start.x_t, t, batch.cond).x0 - aim
        distance = DISTANCES[self.distance](gap, self.huber)
        weight = torch.where(at_boundary, torch.zeros_like(t), 1 / apart(process, t, r))
        return {
            "consistency": (weight.to(distance) * distance).mean(),
            "boundary": self.boundary * (at_boundary * distance).mean(),
        }
