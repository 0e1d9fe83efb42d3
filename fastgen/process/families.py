r"""The four families of forward processes that Diffusers' schedulers use."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property

import torch
from torch import Tensor

from .known import once
from .process import Process, pad_like
from .types import Latent, Levels, Time

NEWTON = 20  # steps; four do where neighbouring secants are alike, all where they differ a thousandfold
FIRST = 1e-6
"""Time of EDM's smallest trained noise: small, so that even steps down to t = 0 are Karras's to as many digits."""


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow: alpha = 1 - t, sigma = t; clock = t (Liu et al. 2022, arXiv:2209.03003)."""

    @once
    def alpha(self, t: Levels) -> Levels:
        return 1 - t.double()

    def sigma(self, t: Levels) -> Levels:
        return t.double()

    def d_alpha(self, t: Levels) -> Levels:
        return -torch.ones_like(t, dtype=torch.float64)

    def d_sigma(self, t: Levels) -> Levels:
        return torch.ones_like(t, dtype=torch.float64)

    def clock(self, t: Levels) -> Levels:
        return t.double()

    def from_clock(self, u: Levels) -> Levels:
        return u.double()

    def time_of(self, logsnr: Levels) -> Levels:
        return torch.sigmoid(-logsnr.double() / 2)


@dataclass(frozen=True)
class Trig(Process):
    """TrigFlow: alpha = cos u, sigma = sin u; clock u = pi t / 2 radians (Lu & Song 2024, arXiv:2410.11081)."""

    @once
    def alpha(self, t: Levels) -> Levels:
        return torch.sin(self.clock(1 - t.double()))  # cos(u), exactly 0 at t = 1

    @once
    def sigma(self, t: Levels) -> Levels:
        return torch.sin(self.clock(t))

    def d_alpha(self, t: Levels) -> Levels:
        return -self.sigma(t)

    def d_sigma(self, t: Levels) -> Levels:
        return self.alpha(t)

    def clock(self, t: Levels) -> Levels:
        return t.double() * (math.pi / 2)

    def from_clock(self, u: Levels) -> Levels:
        return u.double() / (math.pi / 2)

    def time_of(self, logsnr: Levels) -> Levels:
        return self.from_clock(torch.atan(torch.exp(-logsnr.double() / 2)))


@dataclass(frozen=True)
class EDM(Process):
    """Variance exploding: alpha = 1; clock = sigma. Even steps of t are Karras's ramp.

    sigma^(1/rho) is linear in t from sigma_min, which lies at t = FIRST, to sigma_max (Karras et al. 2022,
    arXiv:2206.00364, eq. 5). Below sigma_min sigma itself is, down to clean data at t = 0.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    @once
    def alpha(self, t: Levels) -> Levels:
        return torch.ones_like(t, dtype=torch.float64)

    @once
    def sigma(self, t: Levels) -> Levels:
        t = t.double()
        root = 1 - (1 - self._smallest) * (1 - t.clamp(min=FIRST)) / (1 - FIRST)
        return torch.where(t < FIRST, self.sigma_min / FIRST * t, self.sigma_max * root**self.rho)

    def d_alpha(self, t: Levels) -> Levels:
        return torch.zeros_like(t, dtype=torch.float64)

    def d_sigma(self, t: Levels) -> Levels:
        return torch.ones_like(t, dtype=torch.float64)

    def clock(self, t: Levels) -> Levels:
        return self.sigma(t)

    def from_clock(self, u: Levels) -> Levels:
        u = u.double()
        root = (u.clamp(min=self.sigma_min) / self.sigma_max) ** (1 / self.rho)
        ramp = 1 - (1 - FIRST) * (1 - root) / (1 - self._smallest)
        return torch.where(u < self.sigma_min, FIRST / self.sigma_min * u, ramp)

    def time_of(self, logsnr: Levels) -> Levels:
        return self.from_clock(torch.exp(-logsnr.double() / 2)).clamp(max=1)

    def prior(self, eps: Latent, t: Time) -> Latent:
        """Noise of standard deviation sigma(t)."""
        return (pad_like(self.sigma(t), eps) * eps).to(eps.dtype)

    @property
    def _smallest(self) -> float:
        """Share of the largest sigma^(1/rho) that the smallest is."""
        return float((self.sigma_min / self.sigma_max) ** (1 / self.rho))


@dataclass(frozen=True, eq=False)
class Discrete(Process):
    """Variance preserving on N trained steps: alpha^2 = alphas_cumprod; clock i = N t - 1, the step index.

    Step i is t = (i + 1) / N exactly; t = 0, clean data, lies one step below step 0. Between steps the log-SNR
    is a monotone cubic (Fritsch & Carlson 1980), so alpha and sigma are smooth and nothing is rounded. Below
    step 0, and above the last step but one where the schedule ends at zero SNR, the log-SNR follows a
    logarithm that joins the cubic with equal slope and reaches plus or minus infinity at the end.
    """

    alphas_cumprod: Tensor

    @property
    def steps(self) -> int:
        return len(self.alphas_cumprod)

    @once
    def alpha(self, t: Levels) -> Levels:
        return torch.sigmoid(self.logsnr(t)).sqrt()

    @once
    def sigma(self, t: Levels) -> Levels:
        return torch.sigmoid(-self.logsnr(t)).sqrt()

    def d_alpha(self, t: Levels) -> Levels:
        return 0.5 * self.alpha(t) * self.sigma(t) ** 2 * self._slope(t)

    def d_sigma(self, t: Levels) -> Levels:
        return -0.5 * self.sigma(t) * self.alpha(t) ** 2 * self._slope(t)

    @once
    def clock(self, t: Levels) -> Levels:
        return self.steps * t.double() - 1

    def from_clock(self, u: Levels) -> Levels:
        return (u.double() + 1) / self.steps

    @once
    def logsnr(self, t: Levels) -> Levels:
        u = self.clock(t)
        cubics, ends = self._tables(u.device)
        c0, c1, c2, c3, h = self._piece(cubics, u)
        inside = c0 + h * (c1 + h * (c2 + h * c3))
        below = ends[0] + ends[1] * (u + 1).clamp(max=1).log()
        above = ends[2] - ends[3] * (self._last + 1 - u).clamp(max=1).log()
        return torch.where(u < 0, below, torch.where(u > self._last, above, inside))

    def time_of(self, logsnr: Levels) -> Levels:
        wanted = logsnr.double()
        u = self._clock_of(wanted.detach())
        t = self.from_clock(u).clamp(0, 1)
        moved = t + (wanted - wanted.detach()) / (self.steps * self._slope(t))  # t itself, with its derivative
        return torch.where(wanted.isfinite() & (t < 1), moved, t)

    def _clock_of(self, wanted: Tensor) -> Tensor:
        """Step indices of log-SNRs: logarithms undone at both ends, between them Newton's method on the cubics.

        From its turning point a monotone cubic is approached from one side, where Newton's steps cannot go astray.
        """
        cubics, ends = self._tables(wanted.device)
        i = torch.searchsorted(-cubics[:, 0], -wanted.contiguous()).clamp(1, self._last) - 1
        c0, c1, c2, c3 = cubics[i].unbind(-1)
        h = torch.where(c3 == 0, torch.zeros_like(c3), -c2 / (3 * c3)).clamp(0, 1)
        for _ in range(NEWTON):
            gap = c0 + h * (c1 + h * (c2 + h * c3)) - wanted
            h = (h - gap / (c1 + h * (2 * c2 + 3 * h * c3))).clamp(0, 1)
        below = ((wanted - ends[0]) / ends[1]).exp() - 1
        above = self._last + 1 - ((ends[2] - wanted) / ends[3]).exp()
        return torch.where(wanted > ends[0], below, torch.where(wanted < ends[2], above, i + h))

    @cached_property
    def _last(self) -> int:
        """The last step whose log-SNR is finite."""
        return int((self.alphas_cumprod > 0).sum()) - 1

    @cached_property
    def _tables(self) -> Callable[[torch.device], tuple[Tensor, Tensor]]:
        """Coefficients [last, 4] of the log-SNR's cubics by the steps since a knot; values and slopes at both ends [4].

        Slopes at the knots are harmonic means of the neighbouring secants, which keep the cubics monotone.
        """
        power = self.alphas_cumprod.double().cpu()
        knots = torch.logit(power[power > 0])
        secant = knots.diff()
        slopes = torch.cat([secant[:1], 2 / (1 / secant[1:] + 1 / secant[:-1]), secant[-1:]])
        left, right = slopes[:-1], slopes[1:]
        cubics = torch.stack([knots[:-1], left, 3 * secant - 2 * left - right, left + right - 2 * secant], dim=1)
        ends = torch.stack([knots[0], slopes[0], knots[-1], slopes[-1]])
        return cache(lambda device: (cubics.to(device), ends.to(device)))

    def _piece(self, cubics: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        """The four coefficients around each step index, and the steps since their knot."""
        i = u.detach().floor().long().clamp(0, self._last - 1)
        return *cubics[i].unbind(-1), u - i

    def _slope(self, t: Levels) -> Levels:
        u = self.clock(t)
        cubics, ends = self._tables(u.device)
        _, c1, c2, c3, h = self._piece(cubics, u)
        inside = c1 + h * (2 * c2 + 3 * h * c3)
        below = ends[1] / (u + 1)
        above = ends[3] / (self._last + 1 - u)
        return torch.where(u < 0, below, torch.where(u > self._last, above, inside))
