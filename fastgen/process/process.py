r"""The forward process `x_t = alpha(t) x0 + sigma(t) eps`, and what follows from alpha and sigma alone.

Time runs over [0, 1]: t = 0 is clean data exactly (alpha 1, sigma 0), t = 1 the noisiest level a network was
trained on. Every family also has a *clock*, its own time in the literature (a step index, a sigma, radians);
papers' grids, time laws and derivatives are written in the clock. All arithmetic here is float64.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .known import once
from .types import Latent, Levels, Time


def pad_like(level: Tensor, x: Tensor) -> Tensor:
    """`level` [B] with trailing axes so that it broadcasts against `x` [B, ...]; stays float64, on x's device."""
    return level.to(x.device).reshape(level.shape + (1,) * (x.ndim - level.ndim))


@dataclass(frozen=True)
class Kernel:
    """p(x_t | x_s) = N(scale x_s, std^2), both [B], for s <= t."""

    scale: Tensor
    std: Tensor


class Process(ABC):
    """alpha and sigma of a time in [0, 1], their derivatives by the clock, and the inverse of the log-SNR."""

    @abstractmethod
    def alpha(self, t: Levels) -> Levels: ...

    @abstractmethod
    def sigma(self, t: Levels) -> Levels: ...

    @abstractmethod
    def d_alpha(self, t: Levels) -> Levels:
        """d alpha / d clock."""

    @abstractmethod
    def d_sigma(self, t: Levels) -> Levels:
        """d sigma / d clock."""

    @abstractmethod
    def clock(self, t: Levels) -> Levels:
        """The family's own time."""

    @abstractmethod
    def from_clock(self, u: Levels) -> Levels:
        """Inverse of `clock`."""

    @abstractmethod
    def time_of(self, logsnr: Levels) -> Levels:
        """The time with that log-SNR; beyond the noisiest trained level, t = 1."""

    def logsnr(self, t: Levels) -> Levels:
        """log(alpha^2 / sigma^2): +inf at t = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    def renoise(self, x0: Latent, t: Time, eps: Latent) -> Latent:
        """A sample of p(x_t | x0), in the dtype of x0."""
        x_t = pad_like(self.alpha(t), x0) * x0 + pad_like(self.sigma(t), x0) * eps
        return x_t.to(x0.dtype)

    def prior(self, eps: Latent, t: Time) -> Latent:
        """Where a stock pipeline starts sampling at time t: unit noise, also when its first time lies below 1."""
        return eps

    def transition(self, s: Time, t: Time) -> Kernel:
        """The kernel p(x_t | x_s) for s <= t (Markov: composing it with p(x_s | x0) gives p(x_t | x0))."""
        scale = self.alpha(t) / self.alpha(s)
        variance = self.sigma(t) ** 2 - (scale * self.sigma(s)) ** 2
        return Kernel(scale, variance.clamp(min=0).sqrt())

    def grid_of(self, times: Levels) -> Levels:
        """The times at which this process is where its native one is at `times`; the same unless it was retold."""
        return times

    def retarget(self, other: "Process", t: Time) -> "Retargeted":
        """How `other` sees the noise level t of this process: its time of equal log-SNR and the rescaling of x_t.

        x0 and eps are the same on both sides, so `x_u = scale * x_t`. A level beyond the other's noisiest is
        mapped to its t = 1, the usual approximation at the start of sampling.
        """
        seen = _Seen(self, other)
        return Retargeted(seen.time(t), seen.scale(t))


@dataclass(frozen=True)
class _Seen:
    """How `other` sees the noise levels of a process."""

    process: Process
    other: Process

    @once
    def time(self, t: Levels) -> Levels:
        return self.other.time_of(self.process.logsnr(t))

    @once
    def scale(self, t: Levels) -> Levels:
        u, norm = self.time(t), torch.hypot(self.process.alpha(t), self.process.sigma(t))
        return torch.hypot(self.other.alpha(u), self.other.sigma(u)) / norm


@dataclass(frozen=True)
class Retargeted:
    """A noise level in another process's terms: its time [B], and the factor [B] that x_t is multiplied by."""

    t: Tensor
    scale: Tensor
