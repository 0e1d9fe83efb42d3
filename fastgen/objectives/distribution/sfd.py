"""SFD: score forgetting distillation (Chen et al. 2024, arXiv:2409.11219).

SiD at alpha = 1, of a teacher that is asked for something else wherever it is asked for what is to be forgotten: the
generator and the fake score are told c, the real score `instead` of c. The law that the student comes to is not the
teacher's: asked for what is kept it samples p(x | c), asked for what is forgotten p(x | instead of c), so that over all
that is asked for the kept conditions alone are left. The published code weighs batches of forgotten conditions by 0.01
beside as large ones of kept ones; here each has the share of its rows, which leaves where it ends as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import final

from ...process import AnyTimeLaw, Karras, LogNormal
from ..parts.guidance_laws import AnyGuidance, Fixed
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.rollout import RolloutName
from .sid import IdentityMatching


@final
@dataclass(frozen=True)
class ScoreForgetting(IdentityMatching):
    """Score identity distillation that forgets classes, or what prompts name, on the way.

    Args:
        instead: what is to be forgotten -> what the teacher is asked in its place. Classes by their numbers in quotes;
            of prompts, each place where the words stand. What is not named is distilled as it is.
    """

    times: AnyTimeLaw = Karras(0.0, 0.8)
    fake_times: AnyTimeLaw = LogNormal(-1.2, 1.2)
    fake_space: RowName = "edm"
    guidance: AnyGuidance = Fixed(1.0)
    rollout: RolloutName = "one_step"
    instead: Mapping[str, str] = field(default_factory=dict, hash=False)

    def check(self) -> None:
        if not all(self.instead):
            raise ValueError("instead names an empty text, which stands everywhere: name what is to be forgotten")
        again = [safe for safe in self.instead.values() if safe in self.instead]
        if again:
            raise ValueError(
                f"instead names {again[0]!r} as what is asked in another's place and as what is to be forgotten: name "
                "something that is kept"
            )
        if self.instead and (self.gan.weight or self.stabilisers.real):
            raise ValueError(
                "gan and stabilisers.real bring in real samples, those of what is to be forgotten too: leave them out"
            )
        if self.instead and (self.stabilisers.segments.weight or self.stabilisers.diversity.weight):
            raise ValueError(
                "stabilisers.segments and diversity hold the student to the teacher's trajectory, that of what is to "
                "be forgotten too: leave them out"
            )

    @property
    def also(self) -> Needs:
        return Needs(forgets=True, instead=tuple(self.instead.items()))
