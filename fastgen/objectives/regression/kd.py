"""Knowledge distillation: regress the teacher's probability-flow map (Luhman & Luhman 2021, arXiv:2101.02388).

The generator's one-step sample of a stored noise is pulled to what the teacher's deterministic sampler made of the
same noise. A warm-up for other objectives more than a method: it blurs where the flow map is hard to learn.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.roles import Roles
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.needs import Needs
from ..parts.ops import pseudo_huber


@dataclass(frozen=True)
class KnowledgeDistillation:
    """Regression on stored pairs; one step.

    Args:
        huber: c of the pseudo-Huber loss, in units of the sample's values.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    huber: float = 0.03

    def __post_init__(self) -> None:
        if self.huber < 0:
            raise ValueError(f"huber is {self.huber:g}: its sign would not be read, need at least 0")

    @property
    def needs(self) -> Needs:
        return Needs(pairs=True, one_step=True)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t = batch.full(roles.plan.grids[0][0])
        x_t = roles.process.prior(batch.pair.eps, t)
        x0 = roles.generator(x_t, t, batch.cond).x0
        return {"regression": pseudo_huber(x0 - batch.pair.x0, c=self.huber)}
