"""TwinFlow: any-step flow maps with a fake score of their own, at negative times (arXiv:2512.05150, and its code).

One network is the student and both scores. On the flow process the generator that is told a time s predicts u(x, t, s),
the velocity that leads from (x, t) straight to the trajectory's point at s; told s = t it is the score of the
trajectories that it has learned, told s = -t that of its own samples. So no fake score, no discriminator and no images
are needed: all that is noised are samples that it made itself, in one step. The code's signed time goes into both of
its times, here into the told one, which no sampler sets below zero; the export knows nothing of it.

This is the code's image-free form: its guided target is the teacher's velocity, and the rest of a jump is the
network's own. Errors are robust, D / sqrt(D + c^2) of the mean square D in the gradient. Where velocities are spread
wide such a loss has no mean as its optimum: the fake score learns geometric medians, unless c is as large as they are.
"""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from ...models.calls import Scalars, look, through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, Prediction, Time, Uniform, pad_like
from ...seeds import integers, uniform
from ...unread import refuse_unread
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.distances import pseudo_huber
from ..parts.needs import Needs
from ..parts.ops import Noised, renoised
from ..parts.solvers import AnyScale, Guidance

KINDS = 4
"""Of rows, all as frequent: whole jumps, near ones, any, and those of the fake score."""


@dataclass(frozen=True)
class JumpTimes:
    """Times t >= s of each row's jump [B], and which rows [B] are whole jumps or teach the fake score, where s = t."""

    t: Time
    s: Time
    whole: Tensor
    fake: Tensor

    @property
    def told(self) -> Time:
        """The second time that the network is told, [B]."""
        return torch.where(self.fake, -self.t, self.s)


@dataclass(frozen=True)
class TwinFlow:
    """TwinFlow; from prompts or labels alone. A student of several steps may renoise or step deterministically.

    Args:
        teacher_guidance: guidance of the teacher.
        times: where jumps begin, but for whole ones, which are those of a one-step student.
        near: longest of the near jumps, in parts of t.
        step: first part of a jump, which the teacher does; 0.01 in the code.
        substeps: steps of the generator in the rest of it.
        bound: largest error of an element that is corrected at once.
        matching: weight of the two scores' difference, as in the code's image-free runs.
        compared: noise levels where they are compared.
        c: c of the robust error.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    teacher_guidance: AnyScale = Guidance(4.0, 4.0)
    times: AnyTimeLaw = Uniform()
    near: float = 0.05
    step: float = 0.01
    substeps: int = 2
    bound: float = 1.0
    matching: float = 0.75
    compared: AnyTimeLaw = Uniform()
    c: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 < self.near <= 1 and 0 < self.step < 1 and self.substeps >= 1):
            raise ValueError(
                f"near is {self.near:g}, step {self.step:g} and substeps {self.substeps}: need a share in (0, 1], a "
                "part of the time in (0, 1) and at least one"
            )
        if self.bound <= 0 or self.c <= 0 or self.matching < 0:
            raise ValueError(
                f"bound is {self.bound:g}, c {self.c:g} and matching {self.matching:g}: need above 0, above 0 and at "
                "least 0"
            )
        if not self.matching:
            refuse_unread(self, "compared", why="matching is 0", remedy="set a weight above 0")

    @property
    def needs(self) -> Needs:
        return Needs(real_score=True, process="flow", scalars={"generator": {"s"}}) | self.teacher_guidance.needs()

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        field = self.teacher_guidance.field(roles, batch)
        scalars, jump = self.teacher_guidance.scalars(batch, field), self._jump(roles, batch)
        start = self._start(roles, batch, jump, scalars)
        belief = through(roles.generator, start.x_t, jump.t, batch.cond, {"s": jump.told, **scalars})
        v = field(start.x_t, jump.t).velocity
        excess = self._excess(roles, batch, start.x_t, jump, belief.velocity.detach(), v, scalars)
        aim = belief.velocity.detach() - excess.clamp(-self.bound, self.bound)
        aim = torch.where(pad_like(jump.fake, aim), start.truth.velocity.to(aim.dtype), aim)
        error = self._robust(belief.velocity - aim)
        terms = {"flow": (weight_of(jump).to(error) * error).mean()}
        return terms | ({"matching": self._matching(roles, batch, jump, belief, scalars)} if self.matching else {})

    def _robust(self, error: Latent) -> Tensor:
        """[B]; its gradient is that of the code's D / sqrt(sg D + c^2)."""
        return 2 * pseudo_huber(error, self.c)

    def _jump(self, roles: Roles, batch: Batch) -> JumpTimes:
        kind = integers(batch.rng, KINDS, batch.size)
        whole, near, fake = kind == 0, kind == 1, kind == 2
        t = torch.where(whole, first_time(roles, batch), self.times.sample(roles.process, batch.size, batch.rng))
        width = t * uniform(batch.rng, batch.size, dtype=torch.float64)
        s = t - torch.where(near, self.near * width, width)
        s = torch.where(whole, torch.zeros_like(s), torch.where(fake, t, s))
        return JumpTimes(t, s, whole, fake)

    def _start(self, roles: Roles, batch: Batch, jump: JumpTimes, scalars: Scalars) -> Noised:
        """The generator's own samples noised to the jumps' beginnings; of whole jumps that is noise alone."""
        process, t = roles.process, first_time(roles, batch)
        z = process.prior(batch.noise(), t)
        made = look(roles.generator, z, t, batch.cond, {"s": torch.zeros_like(t), **scalars}).x0
        start = Noised.of(process, made, jump.t, batch.noise())
        noise = process.prior(start.eps, jump.t).to(made.dtype)
        return replace(start, x_t=torch.where(pad_like(jump.whole, noise), noise, start.x_t))

    def _excess(
        self, roles: Roles, batch: Batch, x_t: Latent, jump: JumpTimes, u: Latent, v: Latent, scalars: Scalars
    ) -> Latent:
        """How far u leads too far, over the teacher's part of the jump; of shorter jumps u - v. A constant."""
        end = torch.maximum(jump.t - self.step, jump.s)
        x = (x_t - pad_like(jump.t - end, v) * v).to(x_t.dtype)
        for a, b in pairwise(torch.lerp(end, jump.s, i / self.substeps) for i in range(self.substeps + 1)):
            x = look(roles.generator, x, a, batch.cond, {"s": b, **scalars}).at(b)
        width = pad_like(jump.t - jump.s, x)
        return torch.where(width < self.step, u - v, (width * u - x_t + x) / self.step).to(u.dtype)

    def _matching(self, roles: Roles, batch: Batch, jump: JumpTimes, belief: Prediction, scalars: Scalars) -> Tensor:
        """Whole jumps are moved by how far their samples' own score lies from the trajectories'."""
        noised = renoised(roles, batch, belief.x0.detach(), law=self.compared)
        real, fake = (
            look(roles.generator, noised.x_t, noised.t, batch.cond, {"s": s, **scalars}).velocity
            for s in (noised.t, -noised.t)
        )
        gap = (fake - real).clamp(-self.bound, self.bound)
        error = self._robust(belief.velocity - (belief.velocity - gap).detach())
        return self.matching * KINDS * (jump.whole * error).mean()


def first_time(roles: Roles, batch: Batch) -> Time:
    """Where the student begins, [B]."""
    return batch.full(roles.plan.grids[0][0])


def weight_of(jump: JumpTimes) -> Tensor:
    """1 + tan(2 pi / 5 (1 - (t - s))) of a jump: 1 of the longest, 4.1 of none; 1 where the fake score learns."""
    weight = torch.tan((1 - (jump.t - jump.s)) * math.pi / 2.5) + 1
    return torch.where(jump.fake, torch.ones_like(weight), weight)
