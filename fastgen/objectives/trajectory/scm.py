"""sCM: simplified continuous-time consistency models (Lu & Song 2024, arXiv:2410.11081).

Written for TrigFlow, x = cos(u) x0 + sd sin(u) eps and f = cos(u) x - sd sin(u) F, it holds on every process: x0 and
eps are the same there, F = -sin(u) x0 / sd + cos(u) eps, and tan(u) = sigma / (sd alpha). In units of sd the tangent
cos(u) df / du is

    g = -cos(u)^2 (F - F_real) - r cos(u) sin(u) (x / sd + dF / du)

with the derivative along the teacher's trajectory and the warm-up r. The paper's samples have sd = 1/2, and its c and
its weight 1 / (sd tan(u)) are in that unit: F is pulled to sg(F) + g / (|g| + 2 c) under 2 / tan(u), whatever unit the
samples here have.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from ...models.calls import through
from ...models.roles import Roles
from ...process import AnyTimeLaw, Latent, LogNormal, Prediction, Process, Time, TimeLaw, pad_like
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.derivative import along, check_step, needs_fine_times
from ..parts.needs import Needs
from ..parts.ops import Noised
from ..parts.solvers import AnyScale, Guidance
from ..parts.velocity import Trajectory, Velocity, check_velocity, needs_velocity, trajectory_of

UNIT = 0.5
"""The standard deviation of the samples for which the papers' constants are written."""

Norm = Literal["sample", "element"]


@dataclass(frozen=True)
class Angle:
    """The noise angle u of process times and its rate du / d clock, [B] each, where data have that deviation."""

    cos: Tensor
    sin: Tensor
    rate: Tensor

    @classmethod
    def of(cls, process: Process, t: Time, sigma_data: float) -> "Angle":
        alpha, sigma = process.alpha(t) * sigma_data, process.sigma(t)
        square = alpha**2 + sigma**2
        turning = (process.d_sigma(t) * alpha - sigma * process.d_alpha(t) * sigma_data) / square
        return cls(alpha / square.sqrt(), sigma / square.sqrt(), turning)


@dataclass(frozen=True)
class State:
    """Samples [B, ...] at times t [B] of a trajectory."""

    x_t: Latent
    t: Time


@runtime_checkable
class Pulls(Protocol):
    """The settings that `errors_at` reads, see `SimplifiedConsistency`."""

    @property
    def sigma_data(self) -> float: ...

    @property
    def warmup(self) -> int: ...

    @property
    def normaliser(self) -> float: ...

    @property
    def norm(self) -> Norm: ...

    @property
    def derivative_step(self) -> float | None: ...


@runtime_checkable
class Tangents(Pulls, Protocol):
    """The settings that `tangent_errors` reads, see `SimplifiedConsistency`."""

    @property
    def velocity(self) -> Velocity: ...

    @property
    def teacher_guidance(self) -> Guidance: ...

    @property
    def times(self) -> TimeLaw: ...


@dataclass(frozen=True)
class SimplifiedConsistency:
    """sCD from the teacher's velocity, or sCT from the data's.

    Args:
        velocity: whose trajectory is followed.
        teacher_guidance: guidance of the teacher.
        times: law of the training times; the paper's mean of log(sigma / alpha) is -1 for data of deviation 0.5, log 2
            less.
        sigma_data: standard deviation of the samples; 1 for scaled latents.
        warmup: images until the unstable part of the tangent has its whole weight r = 1.
        normaliser: c, for samples of deviation 0.5 as in the paper. A large c slows what is nearly learned.
        norm: the |g| that c stands beside: of the whole sample, the paper's, or per element (NVlabs/FastGen's), which
            does not depend on the resolution. Per element the paper's 0.1 is 0.1 / sqrt(elements), 0.0018 for
            32 x 32 x 3, and the pull is sqrt(elements) times as long.
        derivative_step: step in the noise angle that dF / du is averaged over, see `along`. Exact by default.
        weighting: weighting of the times; adaptive is the paper's. It evens the losses out, however small they are:
            with a large c, or at a high learning rate, what is already learned then drowns the rest, and uniform is the
            better.
    """

    velocity: Velocity = "real_score"
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = LogNormal(-0.3, 1.4)
    sigma_data: float = 1.0
    warmup: int = 10_000_000
    normaliser: float = 0.1
    norm: Norm = "sample"
    derivative_step: float | None = None
    weighting: Literal["adaptive", "uniform"] = "adaptive"

    def __post_init__(self) -> None:
        check_velocity(self)
        check_step(self.derivative_step)

    @property
    def cycle(self) -> Cycle:
        return (("generator", "log_variance"),) if self.weighting == "adaptive" else ONE_TURN

    @property
    def needs(self) -> Needs:
        own = Needs(log_variance=self.weighting == "adaptive")
        return needs_velocity(self) | needs_fine_times(self.derivative_step) | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        t, errors = tangent_errors(self, roles, batch)
        adaptive = self.weighting == "adaptive"
        return {"tangent": adaptive_mean(roles, t, errors, sigma_data=self.sigma_data) if adaptive else errors.mean()}


def trig_output(belief: Prediction, angle: Angle, sigma_data: float) -> Latent:
    """F of a TrigFlow network (eq. 4): unit-scaled, sd F is the velocity by the angle."""
    x0, eps = belief.x0 / sigma_data, belief.eps
    return (pad_like(angle.cos, eps) * eps - pad_like(angle.sin, eps) * x0).to(eps.dtype)


def tangent_errors(settings: Tangents, roles: Roles, batch: Batch) -> tuple[Time, Tensor]:
    """Times and the mean squares of `errors_at` at noised real samples, [B] each."""
    t = settings.times.sample(roles.process, batch.size, batch.rng)
    start = Noised.of(roles.process, batch.x0, t, batch.noise())
    followed = trajectory_of(settings, roles, batch, start)
    return t, errors_at(settings, roles, batch, State(start.x_t, t), followed)


def errors_at(settings: Pulls, roles: Roles, batch: Batch, start: State, followed: Trajectory) -> Tensor:
    """The mean squares |F - sg(F) - pull|^2 (eq. 8) at those states, [B]."""
    share = min(batch.images / settings.warmup, 1.0) if settings.warmup else 1.0
    sigma_data, step = settings.sigma_data, settings.derivative_step
    constant, g = tangent(roles, batch, start, followed, sigma_data=sigma_data, warmup=share, step=step)
    angle, pull = Angle.of(roles.process, start.t, sigma_data), pulled(g, c=settings.normaliser, norm=settings.norm)
    output = trig_output(through(roles.generator, start.x_t, start.t, batch.cond, followed.scalars), angle, sigma_data)
    return (output - constant - pull).square().flatten(1).mean(dim=1)


def pulled(g: Latent, *, c: float, norm: Norm) -> Latent:
    """The tangent [B, ...] of length 1, per sample or per element, but where it is hardly longer than c."""
    square = (UNIT * g).square().flatten(1)
    length = (square.sum(dim=1) if norm == "sample" else square.mean(dim=1)).sqrt()
    return UNIT * g / (pad_like(length, g) + c).to(g.dtype)


def adaptive_mean(roles: Roles, t: Time, errors: Tensor, *, sigma_data: float) -> Tensor:
    """The mean of errors [B] under the weight 1 / (UNIT tan(u)) and a trained log-variance (eq. 8)."""
    log_variance: Tensor = roles["log_variance"](t)
    angle = Angle.of(roles.process, t, sigma_data)
    weight = angle.cos / (UNIT * angle.sin)
    return (weight.to(errors) * torch.exp(-log_variance) * errors + log_variance).mean()


def tangent(
    roles: Roles,
    batch: Batch,
    start: State | Noised,
    followed: Trajectory,
    *,
    sigma_data: float,
    warmup: float,
    step: float | None = None,
) -> tuple[Latent, Latent]:
    """F and g at those states, both constants; `warmup` is r."""
    process, model, angle = roles.process, roles.generator, Angle.of(roles.process, start.t, sigma_data)

    def curve(x: Latent, clock: Tensor) -> Latent:
        t = process.from_clock(clock)
        return trig_output(model(x, t, batch.cond, followed.scalars), Angle.of(process, t, sigma_data), sigma_data)

    found = along(model, curve, start.x_t, start.t, followed.belief.velocity, unit=1 / angle.rate, step=step)
    x = start.x_t / pad_like(torch.hypot(process.alpha(start.t) * sigma_data, process.sigma(start.t)), start.x_t)
    cos, sin, rate = (pad_like(level, x) for level in (angle.cos, angle.sin, angle.rate))
    g = -(cos**2) * (found.value - trig_output(followed.belief, angle, sigma_data))
    g = g - warmup * cos * sin * (x + found.rate / rate)
    return found.value, g.to(found.value.dtype).detach()
