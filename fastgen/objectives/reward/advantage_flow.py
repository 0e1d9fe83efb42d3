"""AdvantageFlow (Kveton et al. 2026, arXiv:2605.26013): signed regression on the student's own samples, noised again.

loss = A |f - x0|^2 + old |f - f_old|^2 + reference |f - f_ref|^2 at x_t, which is x0 with fresh noise. x0 are whole
samples of the student as it was lately, several for one prompt, A in [-1, 1] what each is worth beside the others; a
bad sample pushes f away from it, past f_old. No density is needed, no reward's derivative, no stochastic sampler.

Where f is the mean of the clean samples behind x_t, as published, an update leads to samples of (1 + A / old) p_old,
and between Gaussians the student comes to rest at the density p_ref exp(r / beta) / Z of a linear reward r: without
`weight`, beta is `reference` times r's deviation within a prompt over the share of samples whose A is not clipped. It
drifts without end where `reference` is 0. A prediction that is itself one of these samples, as distribution matching
makes it, obeys this as far as x_t says little of A; `reference` of 0.1 to 0.5 then keeps the student near its data.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...models.calls import look, through
from ...models.conditioning import sent
from ...models.roles import Roles
from ...models.walk import sample
from ...process import Latent
from ...seeds import integers
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import check_decay, edges_of, follow, target_of
from ..parts.needs import Needs
from ..parts.ops import mean_abs
from ..parts.rewarded import advantages, check_group, grouped, spread

FLOOR = 1e-5


@dataclass(frozen=True)
class AdvantageFlow:
    """Training of a student of few steps by rewards; it goes on from a stage, or an `init`, that made it one.

    Args:
        weight: l1 divides each sample's loss by mean|f - x0|, none by nothing.
        group: samples of one prompt; a multiple of it is a micro-batch.
        old: weight of staying where the student was lately, the inverse of the step size; above 1.
        reference: weight of staying at the real score; `carry: {real_score: ema}` makes that the student before.
        ema: decay of what the student was lately, which draws the samples.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    weight: Literal["l1", "none"] = "l1"
    group: int = 8
    old: float = 1.1
    reference: float = 1e-3
    ema: float = 0.9

    def __post_init__(self) -> None:
        check_group(self.group)
        check_decay(self.ema)
        if self.old <= 1 or self.reference < 0:
            raise ValueError(
                f"old is {self.old:g} and reference {self.reference:g}: need old > 1, or the loss of the worst samples "
                "has no minimum, and reference >= 0"
            )

    @property
    def needs(self) -> Needs:
        return Needs(rewards=True, group=self.group, real_score=self.reference > 0, target=self.ema > 0)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        """The signed regression."""
        follow(roles, batch, self.ema)
        batch = grouped(batch, self.group)
        grid = edges_of(roles, batch)[:-1]
        x0, worth = self._rewarded(roles, batch, grid)
        t = sent(grid, batch.rng.device)[integers(batch.rng, len(grid), batch.size)]
        x_t = roles.process.renoise(x0, t, batch.noise())
        f = through(roles.generator, x_t, t, batch.cond).x0
        lately = look(target_of(roles, self.ema), x_t, t, batch.cond).x0
        loss = worth * _squared(f - x0) + self.old * _squared(f - lately)
        if self.reference:
            apart = _squared(f - look(roles.real_score, x_t, t, batch.cond).x0)
            roles.rewards.note("distance", apart.mean().sqrt())
            loss = loss + self.reference * apart
        if self.weight == "l1":
            loss = loss / mean_abs(f.detach() - x0).flatten().clamp(min=FLOOR)
        return {"advantage": loss.mean()}

    @torch.no_grad()
    def _rewarded(self, roles: Roles, batch: Batch, grid: Tensor) -> tuple[Latent, Tensor]:
        """Samples as the student drew them lately, and what each is worth, [B]."""
        model, sampler = target_of(roles, self.ema), roles.plan.sampler
        x0 = sample(model, batch.noise, batch.cond, grid.tolist(), sampler=sampler)
        roles.rewards.note("spread", spread(x0, self.group))
        return x0, advantages(roles, roles.rewards(x0, batch.asked), self.group)


def _squared(difference: Latent) -> Tensor:
    """Mean square of each sample, [B]."""
    return difference.square().flatten(1).mean(dim=1)
