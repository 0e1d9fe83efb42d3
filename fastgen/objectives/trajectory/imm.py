"""IMM: inductive moment matching (Zhou et al. 2025, arXiv:2503.07565, v7, and its code): jumps that agree in law.

The generator that is told a time s jumps there from t: the deterministic step f(x_t, s, t) of what it believes. Jumps
from t, and from r a little below, have to end in the same distribution at s, which at r = s is that of noised data; so
t learns from r by induction down to s (theorem 1). Distributions are compared by the M particles of a group that
shares its times, by the squared MMD of Laplace kernels; a single particle would be consistency training (lemma 1).

Single pairs need not agree, and the V-statistic, which counts M pairs of one particle's two ends among M^2, pulls those
together nevertheless: by 1 / M of the loss it is a consistency loss, biased as consistency training is. Its exact fixed
points are exact jumps for x_r of an exact teacher; for x_r of data they are one as M grows.

With `velocity: data`, the paper's, x_r is made of x_t and its own clean sample x, and no teacher is asked: its weights
are where a student starts. With `velocity: real_score` it is the (guided) teacher's step from x_t, in place of x what
it believes. That is not in the paper: a step along the probability flow leads to the distribution at r as well, which
is all that theorem 1 asks of x_r, and it alone can be guided. Conditions are each row's own, also within a group.
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

    Noise levels sigma / alpha count in units of the data's deviation. Defaults are those of the paper's latents.

    Args:
        group: M, particles that are compared; a multiple of it is a micro-batch.
        velocity: what leads from x_t to x_r: the clean sample of x_t, or the teacher's belief.
        teacher_guidance: of the teacher.
        times: of t; those of s are even below it. The paper's end at 0.994, where it begins to sample.
        highest: noise level that higher ones count as.
        k: r lies a noise level of `highest` / 2^k below t, and at s where that is higher.
        gap: r lies at least so far below t, 1e-4 in half precision, and at s where that is higher.
        a, b: of the weight of a group's discrepancy, see `weight_of`.
        sigma_data: deviation of the data.
        dropout: share of rows without condition.
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
        """The times of each group, in all of its rows."""
        t = of_first(self.times.sample(process, batch.size, batch.rng), self.group)
        s = t * of_first(uniform(batch.rng, batch.size, dtype=torch.float64), self.group)
        return Interval(t, torch.maximum(s, self.below(process, t)), s)

    def below(self, process: Process, t: Time) -> Time:
        """The time to which t [B] is led where s does not lie above it: a constant decrement of the noise level."""
        noise = noise_level(process, self._seen(process, t)) / self.sigma_data - self.highest / 2**self.k
        r = process.time_of(-2 * (noise.clamp(min=0) * self.sigma_data).log())
        return torch.minimum(r, t - self.gap).clamp(min=0)

    def _seen(self, process: Process, t: Time) -> Time:
        """The times t, but for those that are noisier than what they count as."""
        highest = torch.full_like(t, self.highest * self.sigma_data)
        return torch.minimum(t, process.time_of(-2 * highest.log()))


def scale_of(process: Process, interval: Interval, sigma_data: float) -> Tensor:
    """c_out(s, t) [G]: how far jumps from t to s move what a preconditioned network says in units of deviation 1.

    sigma_data (alpha_s sigma_t - alpha_t sigma_s) / sqrt((sigma_data alpha_t)^2 + sigma_t^2), the paper's Simple-EDM
    (appendix C.5) for noise of unit variance.
    """
    alpha, sigma = process.alpha(interval.t), process.sigma(interval.t)
    turned = process.alpha(interval.s) * sigma - alpha * process.sigma(interval.s)
    return sigma_data * turned / torch.hypot(sigma_data * alpha, sigma)


def weight_of(process: Process, t: Time, *, a: float, b: float, sigma_data: float) -> Tensor:
    """Eq. 13, [G]: sigmoid(b - l) / 2 (-dl / dt) alpha^a / (alpha^2 + sigma^2) of the log-SNR l.

    Alpha and sigma are those of a flow at the same noise level, as in the paper's best runs, so that even times weigh
    noise levels alike on every process.
    """
    u = t.detach().requires_grad_()
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(process.logsnr(u).sum(), u)
    noise = noise_level(process, t) / sigma_data
    share = (1 + noise) ** (2 - a) / (1 + noise**2)
    return 0.5 * torch.sigmoid(b + 2 * noise.log()) * -slope * share
