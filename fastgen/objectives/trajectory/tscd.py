"""TSCD: trajectory segmented consistency distillation of Hyper-SD (Ren et al. 2024, arXiv:2404.13686, section 3.1).

One stage per number of segments, 8, 4, 2 and 1, each going on from the generator of the one before: every time is
mapped to the lower end of its segment, for a student that steps deterministically. With one segment that is a
consistency model. The paper goes on with human
feedback and score distillation (a DMD2 stage here).
"""

from dataclasses import dataclass
from typing import final

from ...models.roles import Roles
from ..parts.adversarial import AdversarialConsistency, ComparedJumps
from ..parts.base import Batch
from ..parts.distances import DistanceName
from ..parts.flow_map import check_decay, divided, edges_of
from ..parts.gan import NO_GAN, AnyGAN
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance


@final
@dataclass(frozen=True)
class SegmentedConsistency(AdversarialConsistency):
    """TSCD with a fixed number of segments.

    Args:
        teacher_guidance: guidance of the teacher (the paper's scale is not known to us).
        grid: solver steps from noise to data, rounded up to a whole number in each segment.
        distance: between the two jumps; the paper's is the mean square, and an adversarial one for few segments.
        gan: adversarial term, compared up to one segment above the end of the jump; 0 for none.
        segments: into which the student's steps are divided or merged.
    """

    teacher_guidance: AnyScale = Guidance(7.5, 7.5)
    distance: DistanceName = "l2"
    gan: AnyGAN = NO_GAN
    segments: int = 8
    ema: float = 0.95

    def check(self) -> None:
        check_decay(self.ema)
        if self.segments < 1:
            raise ValueError(f"segments is {self.segments}: need at least one, the paper's stages have 8, 4, 2 and 1")

    @property
    def also(self) -> Needs:
        return Needs(sampler="ode" if self.segments > 1 else None)

    def compared(self, roles: Roles, batch: Batch) -> ComparedJumps:
        return self.within(roles, batch, divided(edges_of(roles, batch), self.segments))
