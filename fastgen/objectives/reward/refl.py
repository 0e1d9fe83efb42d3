"""ReFL: the student's samples are moved up the reward's slope (Xu et al. 2023, arXiv:2304.05977).

As Hyper-SD (Ren et al. 2024, arXiv:2404.13686, section 3.3) ends: a LoRA on a student of few steps, whose own samples
are decoded and judged. Here each reward is in units of its spread, without the margins of the papers; a student that
goes too far is held by its distance to the real score, which `carry: {real_score: ema}` makes the student before.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.calls import look, through
from ...models.roles import Roles
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.needs import Needs
from ..parts.rewarded import reward_loss
from ..parts.rollout import jumped_off


@dataclass(frozen=True)
class ReFL:
    """Reward feedback of a student that samples as it is exported, through its last call.

    Args:
        reference: weight of the squared distance to what the real score predicts of the same call; 0 for none.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    reference: float = 1.0

    def __post_init__(self) -> None:
        if self.reference < 0:
            raise ValueError(f"reference is {self.reference:g}: a negative weight drives the student off, need >= 0")

    @property
    def needs(self) -> Needs:
        return Needs(rewards=True, real_score=self.reference > 0, sampler="renoise")

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        x_t, t = jumped_off(roles, batch)
        x0 = through(roles.generator, x_t, t, batch.cond).x0
        terms = {"reward": reward_loss(roles, batch, x0)}
        if self.reference:
            apart = (x0 - look(roles.real_score, x_t, t, batch.cond).x0).square().mean()
            roles.rewards.note("distance", apart.detach().sqrt())
            terms["reference"] = self.reference * apart
        return terms
