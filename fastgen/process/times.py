"""Time laws (where training looks) and grids (where sampling stops)."""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from ..seeds import normal, uniform
from .process import Process


@runtime_checkable
class TimeLaw(Protocol):
    """A distribution of process times."""

    def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
        """`count` times, float64, on the device of `rng`."""
        ...


def _uniform(count: int, rng: torch.Generator) -> Tensor:
    return uniform(rng, count, dtype=torch.float64)


def _span(low: float, high: float, count: int, rng: torch.Generator) -> Tensor:
    """Uniform in (low, high]: never clean data exactly when low is 0."""
    return low + (high - low) * (1 - _uniform(count, rng))


def _normal(count: int, rng: torch.Generator) -> Tensor:
    return normal(rng, count, dtype=torch.float64)


@dataclass(frozen=True)
class Uniform:
    """Uniform in process time, even in the step index of a discrete process and in Karras's ramp on EDM.

    Then comes the flow shift `s t / (1 + (s - 1) t)`.

    Args:
        low, high: least and largest time before the shift, in [0, 1].
        shift: s, above 1 towards the noise.
    """

    low: float = 0.0
    high: float = 1.0
    shift: float = 1.0
    law: Literal["uniform"] = "uniform"

    def __post_init__(self) -> None:
        check_span(self.low, self.high)
        if self.shift <= 0:
            raise ValueError(f"shift is {self.shift}: it must be above 0")

    def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
        return shifted(_span(self.low, self.high, count, rng), self.shift)


@dataclass(frozen=True)
class Karras:
    """EDM's ramp on any process (Karras et al. 2022, arXiv:2206.00364, eq. 5).

    sigma / alpha = (m + u (M - m))^rho with m, M = sigma_min^(1/rho), sigma_max^(1/rho) and u uniform in [low, high].
    Noisier levels than the process has become its noisiest.

    Args:
        low, high: part of the ramp that is drawn from, in [0, 1].
        sigma_min, sigma_max: noise levels sigma / alpha at its ends.
        rho: exponent of the ramp.
    """

    low: float = 0.0
    high: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    law: Literal["karras"] = "karras"

    def __post_init__(self) -> None:
        check_span(self.low, self.high)
        if not 0 < self.sigma_min < self.sigma_max or self.rho <= 0:
            raise ValueError(
                f"the ramp runs from {self.sigma_min} to {self.sigma_max} with rho {self.rho}: need "
                "0 < sigma_min < sigma_max and rho > 0"
            )

    def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
        return self.at(process, _span(self.low, self.high, count, rng))

    def at(self, process: Process, share: Tensor) -> Tensor:
        """Times at shares of the ramp, 0 at sigma_min and 1 at sigma_max."""
        least, most = (sigma ** (1 / self.rho) for sigma in (self.sigma_min, self.sigma_max))
        return process.time_of(-2 * self.rho * (least + (most - least) * share.double()).log())


@dataclass(frozen=True)
class LogitNormal:
    """sigmoid(N(mean, std^2)), then the flow shift `s t / (1 + (s - 1) t)` (SD3, arXiv:2403.03206, eq. 19 and 23).

    Args:
        mean, std: moments of the normal law.
        shift: s, above 1 towards the noise.
    """

    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0
    law: Literal["logit_normal"] = "logit_normal"

    def __post_init__(self) -> None:
        if self.std <= 0 or self.shift <= 0:
            raise ValueError(f"std is {self.std} and shift {self.shift}: both must be above 0")

    def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
        return shifted(torch.sigmoid(self.mean + self.std * _normal(count, rng)), self.shift)


@dataclass(frozen=True)
class LogNormal:
    """log(sigma / alpha) ~ N(mean, std^2), EDM's training law (Karras et al. 2022, table 1).

    Args:
        mean, std: moments of the normal law of the logarithm.
    """

    mean: float = -1.2
    std: float = 1.2
    law: Literal["log_normal"] = "log_normal"

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std is {self.std}: it must be above 0")

    def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
        return process.time_of(-2 * (self.mean + self.std * _normal(count, rng)))


@dataclass(frozen=True)
class Beta:
    """Beta(a, b) over process time (DMDR, arXiv:2511.13649); a > b leans to the noise.

    Args:
        a, b: shapes, at least 1; both 1 are even times.
        low, high: the span that it is laid over, in [0, 1].
    """

    a: float = 1.0
    b: float = 1.0
    low: float = 0.0
    high: float = 1.0
    law: Literal["beta"] = "beta"

    def __post_init__(self) -> None:
        check_span(self.low, self.high)
        if self.a < 1 or self.b < 1:
            raise ValueError(f"a is {self.a} and b {self.b}: need at least 1, below which times pile up at an end")

    def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
        x = torch.linspace(0, 1, 2049, dtype=torch.float64, device=rng.device)
        middle = (x[1:] + x[:-1]) / 2
        below = torch.cumsum(middle ** (self.a - 1) * (1 - middle) ** (self.b - 1), dim=0)
        u = below[-1] * (1 - _uniform(count, rng))
        cell = torch.searchsorted(below, u).clamp(max=len(below) - 1)
        start = torch.where(cell > 0, below[cell - 1], 0)
        share = (cell + (u - start) / (below[cell] - start)) / len(below)
        return self.low + (self.high - self.low) * share


AnyTimeLaw = Annotated[Uniform | Karras | LogitNormal | LogNormal | Beta, Field(discriminator="law")]
"""A time law as a config names it."""


def check_span(low: float, high: float) -> None:
    """Raises ValueError for bounds that no time lies between."""
    if not 0 <= low < high <= 1:
        raise ValueError(f"times run from 0 (clean) to 1: need 0 <= low < high <= 1, got {low}, {high}")


def shifted(t: Tensor, shift: float) -> Tensor:
    """Flow times moved towards the noise for higher resolutions (SD3, eq. 23); shift 1 moves nothing."""
    return t if shift == 1 else shift * t / (1 + (shift - 1) * t)


def laid(law: TimeLaw, t: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Times of a law with its [0, 1] laid over [low, high]; a law's shift goes on counting from clean data."""
    shift = float(getattr(law, "shift", 1.0))
    t, low, high = (shifted(x, 1 / shift) for x in (t, low, high))
    return shifted(low + (high - low) * t, shift)


def even_grid(steps: int, *, shift: float = 1.0) -> Tensor:
    """`steps` descending times from 1, evenly spaced with the clean end left out, float64."""
    return shifted(torch.arange(steps, 0, -1, dtype=torch.float64) / steps, shift)
