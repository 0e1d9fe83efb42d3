"""IMM: inductive moment matching (Zhou et al. 2025, arXiv:2503.07565, version 7).

The generator is told a time s and jumps there from t: f(x_t, s, t) is the deterministic step of its prediction. Jumps
from t, and from a time r a little below it, have to end in the same distribution at s. At r = s the target is noised
data itself, and so t learns from r by induction (theorem 1). A group of M particles shares t, r and s; the loss is the
squared MMD between the two ends of the group, under Laplace kernels (eq. 67). A group of one is consistency training
(lemma 1). Each row has its own condition, also within a group.

The estimate is a V-statistic: M of its M^2 pairs are the two ends of one particle, which it pulls together as
consistency training does. Only if x_r lies on x_t's own trajectory do exact jumps have no gradient at all; if x_r is
made from data they have none in the limit of many particles.

`velocity: data` is the paper's form: x_r is the DDIM interpolation between x_t and its clean sample x, and no teacher
is asked; the student merely starts from its weights. `velocity: real_score` is a distillation form that the paper does
not have: x_r is the teacher's step from x_t, its prediction taking the place of x. Without guidance such a step also
leads to the distribution at r, which is what theorem 1 needs, up to the step's error. With guidance the trajectories of
the guided teacher are learned, as in consistency distillation.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ...models.roles import Roles
from ...process import AnyTimeLaw, Process, Time, Uniform
from ...seeds import uniform
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.curricula import noise_level
from ..parts.flow_map import Interval, jumps, noised
from ..parts.moments import check_whole_groups, laplace_discrepancy, of_first
from ..parts.needs import Needs
from ..parts.solvers import AnyScale, Guidance
from ..parts.velocity import Velocity, check_velocity, needs_velocity, trajectory_of


@dataclass(frozen=True)
class InductiveMomentMatching:
    """IMM; a student that renoises is told s = 0, one that steps deterministically where each step leads.

    Noise levels are sigma / alpha in units of the data's standard deviation. Defaults are the paper's for latents.

    Args:
        group: M, the particles that are compared with each other; a micro-batch is a multiple of it.
        velocity: what x_r is made from: data (the clean sample of x_t) or real_score (the teacher's prediction).
        teacher_guidance: guidance of the teacher.
        times: law of t; s is uniform in [0, t]. The paper's t ends at 0.994, where its samplers begin.
        highest: the largest noise level; times above it are treated as if they had this one.
        k: the noise level of r is `highest` / 2^k below that of t, but r is never below s.
        gap: least distance of r from t in process time, 1e-4 in the paper's runs in half precision.
        a, b: exponent and bias of the weight, see `weight_of`.
        sigma_data: standard deviation of the data, in units of the noise's.
        dropout: share of rows without condition, in both jumps.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    group: int = 4
    velocity: Velocity = "data"
    teacher_guidance: AnyScale = Guidance()
    times: AnyTimeLaw = Uniform()
    highest: float = 160.0
    k: int = 12
    gap: float = 0.0
    a: float = 1.0
    b: float = 4.0
    sigma_data: float = 1.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        check_velocity(self)
        if self.group < 1 or self.k < 1 or self.highest <= 0 or self.sigma_data <= 0:
            raise ValueError(
                f"group is {self.group}, k {self.k}, highest {self.highest:g} and sigma_data {self.sigma_data:g}: need "
                "at least 1, at least 1, above 0 and above 0"
            )
        if not (0 <= self.gap < 1 and 0 <= self.dropout <= 1):
            raise ValueError(
                f"gap is {self.gap:g} and dropout {self.dropout:g}: need a time in [0, 1) and a share in [0, 1]"
            )

    @property
    def needs(self) -> Needs:
        own = Needs(scalars={"generator": {"s"}}, group=self.group, null=self.dropout > 0)
        return needs_velocity(self) | own

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        check_whole_groups(batch, self.group)
        if self.dropout:
            batch = replace(batch, cond=batch.cond.dropped(uniform(batch.rng, batch.size) < self.dropout))
        interval = self.interval(roles.process, batch)
        start = noised(roles, batch, interval.t)
        followed = trajectory_of(self, roles, batch, start)
        scalars = {"s": interval.s, **followed.scalars}
        ends = jumps(roles, batch, interval, start.x_t, followed.belief.at(interval.r), ema=0.0, scalars=scalars)
        shared = Interval(*(times[:: self.group] for times in (interval.t, interval.r, interval.s)))
        rate = 1 / scale_of(roles.process, shared, self.sigma_data)
        made, aim = (x.unflatten(0, (-1, self.group)) for x in (ends.generated, ends.target))
        apart = laplace_discrepancy(made, aim, rate)
        seen = self._seen(roles.process, shared.t)
        weight = weight_of(roles.process, seen, a=self.a, b=self.b, sigma_data=self.sigma_data)
        return {"moments": (weight.to(apart) * apart).mean()}

    def interval(self, process: Process, batch: Batch) -> Interval:
        """Draw t, r and s [B], the same for all rows of a group."""
        t = of_first(self.times.sample(process, batch.size, batch.rng), self.group)
        s = t * of_first(uniform(batch.rng, batch.size, dtype=torch.float64), self.group)
        return Interval(t, torch.maximum(s, self.below(process, t)), s)

    def below(self, process: Process, t: Time) -> Time:
        """r [B] before s bounds it: the noise level of t less a constant decrement (appendix C.6)."""
        noise = noise_level(process, self._seen(process, t)) / self.sigma_data - self.highest * 2.0**-self.k
        r = process.time_of(-2 * (noise.clamp(min=0) * self.sigma_data).log())
        return torch.minimum(r, t - self.gap).clamp(min=0)

    def _seen(self, process: Process, t: Time) -> Time:
        """t [B], or the time of the highest noise level where t is noisier."""
        highest = torch.full_like(t, self.highest * self.sigma_data)
        return torch.minimum(t, process.time_of(-2 * highest.log()))


def scale_of(process: Process, interval: Interval, sigma_data: float) -> Tensor:
    """c_out(s, t) [G], by which the jump from t to s scales the output of a preconditioned network of unit variance.

    sigma_data (alpha_s sigma_t - alpha_t sigma_s) / sqrt((sigma_data alpha_t)^2 + sigma_t^2): the paper's Simple-EDM
    (appendix C.5), for noise of unit variance. Its inverse is the rate of the kernels.
    """
    alpha, sigma = process.alpha(interval.t), process.sigma(interval.t)
    turned = process.alpha(interval.s) * sigma - alpha * process.sigma(interval.s)
    return sigma_data * turned / torch.hypot(sigma_data * alpha, sigma)


def weight_of(process: Process, t: Time, *, a: float, b: float, sigma_data: float) -> Tensor:
    """The weight of a group at t [G]: sigmoid(b - l) / 2 (-dl / dt) alpha^a / (alpha^2 + sigma^2) (eq. 13).

    l is the log-SNR. Alpha and sigma are those of the flow process at the same noise level, as in the paper's best
    runs, so that under uniform times each span of log-SNR has the same weight on every process.
    """
    u = t.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(process.logsnr(u).sum(), u)
    noise = noise_level(process, t) / sigma_data
    share = (1 + noise) ** (2 - a) / (1 + noise**2)
    return 0.5 * torch.sigmoid(b + 2 * noise.log()) * -slope * share
