"""Consistency models (Song et al. 2023, arXiv:2303.01469): neighbours on a trajectory have one clean sample.

Distillation takes the neighbour from the teacher's solver (algorithm 2), training from the same sample and noise
(algorithm 3). The improved curricula are iCT's (arXiv:2310.14189) and ECT's (arXiv:2406.14548).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...models.calls import NONE, Scalars
from ...models.roles import Roles
from ...process import Latent
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.curricula import AnyCurriculum, Neighbours, Ramp, Ratio
from ..parts.distances import DISTANCES, DistanceName, check_huber
from ..parts.flow_map import Interval, edges_of, follow, jumps, noised
from ..parts.needs import Needs
from ..parts.ops import Noised
from ..parts.solvers import SOLVERS, AnyScale, Guidance, SolverName


@dataclass(frozen=True)
class ConsistencyDistillation:
    """CD.

    Args:
        curriculum: which neighbours are drawn, and the average that gives the target.
        teacher_guidance: guidance of the teacher.
        solver: solver of the teacher's step; the paper's is Heun's.
        substeps: solver steps from t to its neighbour.
        distance: between the two clean samples; the paper's best is LPIPS.
        huber: c of the Huber distances.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    curriculum: AnyCurriculum = Ramp()
    teacher_guidance: AnyScale = Guidance()
    solver: SolverName = "heun"
    substeps: int = 1
    distance: DistanceName = "l2"
    huber: float = 0.00054

    def __post_init__(self) -> None:
        check_huber(self)

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=True) | self.teacher_guidance.needs(target=self.curriculum.averaged)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        near = self.curriculum.neighbours(roles.process, edges_of(roles, batch), batch)
        start = noised(roles, batch, near.t)
        field = self.teacher_guidance.field(roles, batch)
        x_r = SOLVERS[self.solver](field, start.x_t, near.t, near.r, substeps=self.substeps)
        scalars = self.teacher_guidance.scalars(batch, field)
        return {"consistency": agreement(self, roles, batch, near, start, x_r, scalars)}


@dataclass(frozen=True)
class ConsistencyTraining:
    """CT, iCT (curriculum doubling) and ECT (ratio, from a pretrained teacher's weights); no teacher is asked.

    Args:
        curriculum: which neighbours are drawn, and the average that gives the target.
        distance: between the two clean samples.
        huber: c of the Huber distances.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    curriculum: AnyCurriculum = Ratio()
    distance: DistanceName = "pseudo_huber"
    huber: float = 0.00054

    def __post_init__(self) -> None:
        check_huber(self)

    @property
    def needs(self) -> Needs:
        return Needs(images=True, target=self.curriculum.averaged)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        near = self.curriculum.neighbours(roles.process, edges_of(roles, batch), batch)
        start = noised(roles, batch, near.t)
        x_r = roles.process.renoise(batch.x0, near.r, start.eps)
        return {"consistency": agreement(self, roles, batch, near, start, x_r)}


def agreement(
    settings: ConsistencyDistillation | ConsistencyTraining,
    roles: Roles,
    batch: Batch,
    near: Neighbours,
    start: Noised,
    x_r: Latent,
    scalars: Scalars = NONE,
) -> Tensor:
    """The weighted distance of the clean samples that generator and target see at two neighbours (eq. 7 and 10)."""
    ema = settings.curriculum.ema(batch.images)
    follow(roles, batch, ema)
    interval = Interval(near.t, near.r, batch.full(0.0))
    ends = jumps(roles, batch, interval, start.x_t, x_r, ema=ema, scalars=scalars)
    distance = DISTANCES[settings.distance](ends.gap, settings.huber)
    return (near.weight.to(distance) * distance).mean()
