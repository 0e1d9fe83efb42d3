"""Denoising score matching: trains a teacher from random weights (Ho et al. 2020, arXiv:2006.11239).

min E || output(x_t, t, c) - output of (x0, eps) ||^2 in the space of any row, with the label dropped now and then so
that the same network also knows the unconditional score (Ho & Salimans 2022, arXiv:2207.12598).
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.roles import Roles
from ...process import AnyTimeLaw, Uniform
from ...seeds import uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.needs import Needs
from ..parts.ops import RowName, denoising_loss, renoised


@dataclass(frozen=True)
class Pretrain:
    """Denoising of real samples.

    Args:
        label_dropout: share of rows that see the null label.
        times: where the loss looks.
        space: the row in which errors are squared; "v" suits a variance-preserving process, "flow" a flow.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    label_dropout: float = 0.1
    times: AnyTimeLaw = Uniform()
    space: RowName = "v"

    @property
    def needs(self) -> Needs:
        return Needs(images=True, null=self.label_dropout > 0)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        noised = renoised(roles, batch, batch.x0, law=self.times)
        cond = batch.cond
        if self.label_dropout:
            drawn = uniform(batch.rng, batch.size)
            cond = cond.dropped(drawn < self.label_dropout)
        prediction = roles.generator(noised.x_t, noised.t, cond)
        return {"denoise": denoising_loss(prediction, noised, space=self.space)}
