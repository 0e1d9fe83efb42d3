"""PCM: phased consistency models (Wang et al. 2024, arXiv:2405.18407).

The time axis is cut into phases at the student's own times, and within a phase every time is mapped to its end. The
last phase ends at step 0 of a discrete process.
"""

from dataclasses import dataclass
from typing import ClassVar, final

from ...models.roles import Roles
from ..parts.adversarial import AdversarialConsistency, ComparedJumps
from ..parts.base import Batch
from ..parts.flow_map import edges_of
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance


@final
@dataclass(frozen=True)
class PhasedConsistency(AdversarialConsistency):
    """PCM; the student steps deterministically.

    Args:
        teacher_guidance: the paper's 4 to 5 are 5 to 6 in Diffusers' convention. The student is not told.
        grid: solver steps from noise to data, rounded up to a whole number in each phase.
        gan: adversarial consistency, compared up to one phase above the end of the jump; 0 for none.
    """

    teacher_guidance: AnyScale = Guidance(5.0, 6.0)
    ema: ClassVar[float] = 0.0

    @property
    def also(self) -> Needs:
        return Needs(sampler="ode")

    def compared(self, roles: Roles, batch: Batch) -> ComparedJumps:
        return self.within(roles, batch, edges_of(roles, batch))
