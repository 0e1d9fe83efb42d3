"""FreeFlow: a flow map distilled without data (Tong et al. 2025, arXiv:2511.19428), by prediction and correction.

All starts are noises at the student's first time t. On the flow process the generator that is told a time s predicts
u(z, s), the velocity that leads from z straight to the trajectory's point at s. Differentiated by s that point moves
at the teacher's velocity, so that

    u = v(z - (t - s) u, s) + (t - s) du / ds:

the teacher is asked where the student itself arrives, and the derivative is by one scalar. What prediction leaves
wrong adds up towards s = 0, and is corrected there by a fake score, as Diff-Instruct does.

Of the paper's text an account was read, no code. From it are the shares of the two parts, the weight 1 / (|d|^2 + c)^k
of a prediction's error d with k = 1, and that the correction is scaled to the prediction; c, the laws of the times and
the share of whole jumps are not from there. Each sample has both parts here, in the paper's proportion of samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.calls import Scalars, look, through
from ...models.roles import Roles
from ...process import ROWS, AnyTimeLaw, Latent, LogitNormal, Time, Uniform, laid, pad_like
from ...seeds import uniform
from ...unread import refuse_unread
from ..parts.base import Batch, Cycle, Landing, Terms
from ..parts.derivative import along, check_step, needs_fine_times
from ..parts.matching import check_ratio
from ..parts.needs import Needs
from ..parts.ops import denoising_loss, renoised, surrogate
from ..parts.rollout import land, landing_of
from ..parts.solvers import AnyScale, Field, Guidance

FLOOR = 1e-8
"""Of the length that a correction is divided by."""


@dataclass(frozen=True)
class FreeFlow:
    """FreeFlow; from prompts or labels alone, to one step.

    Args:
        times: where predicted jumps lead, below the first time.
        whole: share of the samples whose jumps lead to clean data, as the student's do.
        teacher_guidance: guidance of the teacher.
        power, c: the prediction's loss is D / (sg D + c)^power of the mean squared error D.
        correction: share of the correction in the loss; 0 trains without fake score.
        strength: length of the correction's pull, in that of the prediction's.
        corrected: noise levels where the two scores are compared.
        fake_times: noise levels where the fake score is trained.
        ratio: fake updates per generator update.
        derivative_step: step in the flow's time that du / ds is averaged over, see `along`. An exact one, null, follows
            the fast waves of the embedding of s: on the proof bed it ends at 0.65 of the teacher's distance, not at
            0.10.
    """

    times: AnyTimeLaw = LogitNormal(-0.8, 1.0)
    whole: float = 0.25
    teacher_guidance: AnyScale = Guidance()
    power: float = 1.0
    c: float = 0.01
    correction: float = 0.25
    strength: float = 1.0
    corrected: AnyTimeLaw = LogitNormal(0.4, 1.0)
    fake_times: AnyTimeLaw = Uniform()
    ratio: int = 1
    derivative_step: float | None = 0.05

    def __post_init__(self) -> None:
        check_step(self.derivative_step)
        check_ratio(self.ratio)
        if not (0 <= self.whole <= 1 and 0 <= self.correction < 1):
            raise ValueError(
                f"whole is {self.whole} and correction {self.correction}: need shares in [0, 1], and below 1 of the "
                "correction, which has no trajectory to follow alone"
            )
        if not self.correction:
            names, remedy = ("strength", "corrected", "fake_times", "ratio"), "set a share above 0"
            refuse_unread(self, *names, why="correction is 0", remedy=remedy)
        if self.teacher_guidance.told and self.correction:
            raise ValueError(
                "teacher_guidance.told is true, but the fake score sees samples of all scales: set correction=0, or "
                "teacher_guidance.told=false"
            )

    @property
    def cycle(self) -> Cycle:
        return (("generator",), *([("fake_score",)] * self.ratio if self.correction else []))

    @property
    def needs(self) -> Needs:
        own = Needs(real_score=True, process="flow", sampler="ode", one_step=True, scalars={"generator": {"s"}})
        return own | self.teacher_guidance.needs() | needs_fine_times(self.derivative_step)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        field = self.teacher_guidance.field(roles, batch)
        error = self._error(roles, batch, field)
        square = error.square().flatten(1).mean(dim=1)
        weight = 1 / (square.detach() + self.c) ** self.power
        predicted = {"prediction": (1 - self.correction) * (weight * square).mean()}
        if not self.correction:
            return predicted
        pull = pad_like(2 * weight, error) * error.detach()
        return predicted | {"correction": self.correction * self._corrected(roles, batch, field, pull)}

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        noised = renoised(roles, batch, landing_of(self._sampled, roles, batch).x, law=self.fake_times)
        belief = through(roles.fake_score, noised.x_t, noised.t, batch.cond)
        return {"denoise": denoising_loss(belief, noised, space="difference")}

    def _error(self, roles: Roles, batch: Batch, field: Field) -> Latent:
        """u(z, s) minus what the identity makes of it, which is a constant."""
        z, t = _start(roles, batch)
        s = laid(self.times, self.times.sample(roles.process, batch.size, batch.rng), torch.zeros_like(t), t)
        s = torch.where(uniform(batch.rng, batch.size) < self.whole, torch.zeros_like(s), s)
        told = self.teacher_guidance.scalars(batch, field)
        aim = generating_velocity(roles, batch, field, z, t, s, told, step=self.derivative_step)
        return through(roles.generator, z, t, batch.cond, {"s": s, **told}).velocity - aim

    def _corrected(self, roles: Roles, batch: Batch, field: Field, pull: Latent) -> Tensor:
        """The scores' difference as a gradient of clean samples, on average `strength` as long as `pull`."""
        x0 = land(self._sampled, roles, batch).x0
        noised = renoised(roles, batch, x0, law=self.corrected)
        real = field(noised.x_t, noised.t)
        fake = look(roles.fake_score, noised.x_t, noised.t, batch.cond)
        gap = (real.output(ROWS["difference"]) - fake.output(ROWS["difference"])).detach()
        scale = self.strength * _length(pull) / (_length(gap) + FLOOR)
        return surrogate(x0, scale * gap)

    def _sampled(self, roles: Roles, batch: Batch) -> Landing:
        """The student's own samples, in one step."""
        z, t = _start(roles, batch)
        x0 = through(roles.generator, z, t, batch.cond, {"s": torch.zeros_like(t)}).x0
        return Landing(x0, None, t, x0)


def generating_velocity(
    roles: Roles,
    batch: Batch,
    field: Field,
    z: Latent,
    t: Time,
    s: Time,
    told: Scalars,
    *,
    step: float | None = None,
) -> Latent:
    """v(z - (t - s) u, s) + (t - s) du / ds, a constant."""
    model, process = roles.generator, roles.process

    def curve(x: Latent, clock: Tensor) -> Latent:
        scalars: Mapping[str, Tensor] = {"s": process.from_clock(clock), **told}
        return model(x, t, batch.cond, scalars).velocity

    found = along(model, curve, z, s, torch.zeros_like(z), step=step)
    width = pad_like(t - s, z)
    reached = (z - width * found.value).to(z.dtype)
    return (field(reached, s).velocity + width * found.rate).to(z.dtype).detach()


def _start(roles: Roles, batch: Batch) -> tuple[Latent, Time]:
    t = batch.full(roles.plan.grids[0][0])
    return roles.process.prior(batch.noise(), t), t


def _length(x: Latent) -> Tensor:
    """Mean root mean square of the samples."""
    return x.square().flatten(1).mean(dim=1).sqrt().mean()
