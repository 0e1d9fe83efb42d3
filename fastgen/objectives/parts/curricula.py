"""Which neighbouring times a consistency model is trained on, as a function of the images seen."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...models.conditioning import sent
from ...process import AnyTimeLaw, Karras, LogNormal, Process, Time
from .base import Batch
from .flow_map import cells, drawn_cell, merged, origin
from .ops import picked


@dataclass(frozen=True)
class Neighbours:
    """Times t > r and the weight of their loss, [B] each."""

    t: Time
    r: Time
    weight: Tensor


@dataclass(frozen=True)
class FixedGrid(ABC):
    """A grid that stays as it is, whose cells are drawn evenly, and a target that follows at one pace.

    Args:
        points: points of the grid, clean data included.
        decay: decay of the target; 0 makes the generator its own.
    """

    points: int = 18
    decay: float = 0.95

    @property
    def averaged(self) -> bool:
        return self.decay > 0

    def ema(self, images: int) -> float:
        return self.decay

    @abstractmethod
    def grid(self, process: Process, edges: Tensor) -> Tensor:
        """Descending times, those of the edges among them."""

    def neighbours(self, process: Process, edges: Tensor, batch: Batch) -> Neighbours:
        return on(self.grid(process, edges), process, batch)


class OwnTarget:
    """The generator is its own target."""

    @property
    def averaged(self) -> bool:
        return False

    def ema(self, images: int) -> float:
        return 0.0


@dataclass(frozen=True)
class Even(FixedGrid):
    """A fixed grid, even in process time.

    Args:
        points: points of the grid, clean data included; rounded up to a whole number of cells in each of the student's
            steps.
    """

    law: Literal["even"] = "even"

    def grid(self, process: Process, edges: Tensor) -> Tensor:
        return cells(edges, self.points - 1)


@dataclass(frozen=True)
class Ramp(FixedGrid):
    """A fixed grid, Karras's ramp on every process (Song et al. 2023, arXiv:2303.01469, section 5.1; see `ramp`).

    Args:
        points: points of the ramp, clean data included; the student's own times come in addition.
    """

    law: Literal["karras"] = "karras"

    def grid(self, process: Process, edges: Tensor) -> Tensor:
        return ramp(process, edges, self.points - 1)


@dataclass(frozen=True)
class Root:
    """A ramp that is refined while the target's decay grows (Song et al. 2023, arXiv:2303.01469, appendix C).

    N(k) = ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 points of `ramp`, and the decay
    exp(s0 log mu0 / N(k)) of the target; the paper's code has N(k) - 1.

    Args:
        first, last: s0 and s1.
        decay: mu0.
        images: K, over which the grid is refined.
    """

    first: int = 2
    last: int = 150
    decay: float = 0.9
    images: int = 100_000_000
    law: Literal["root"] = "root"

    @property
    def averaged(self) -> bool:
        return True

    def points(self, images: int) -> int:
        done = min(images / self.images, 1.0)
        return math.ceil(math.sqrt(done * ((self.last + 1) ** 2 - self.first**2) + self.first**2) - 1) + 1

    def ema(self, images: int) -> float:
        return math.exp(self.first * math.log(self.decay) / self.points(images))

    def neighbours(self, process: Process, edges: Tensor, batch: Batch) -> Neighbours:
        return on(ramp(process, edges, self.points(batch.images) - 1), process, batch)


@dataclass(frozen=True)
class Doubling(OwnTarget):
    """iCT: a ramp whose cells double (Song & Dhariwal 2023, arXiv:2310.14189, eq. 10, section 3.4 and 3.5).

    N(k) = min(s0 2^floor(k / K'), s1) + 1 points of `ramp`, K' = floor(K / (log2(s1 / s0) + 1)); cells drawn
    as often as a log-normal falls into them, weights 1 / (difference of noise levels).

    Args:
        first, last: s0 and s1.
        images: K, over which the grid is refined.
        mean, std: mean and standard deviation of log(sigma / alpha).
    """

    first: int = 10
    last: int = 1280
    images: int = 400_000_000
    mean: float = -1.1
    std: float = 2.0
    law: Literal["doubling"] = "doubling"

    def points(self, images: int) -> int:
        span = self.images // (math.floor(math.log2(self.last / self.first)) + 1)
        return int(min(self.first * 2 ** (images // span), self.last)) + 1

    def shares(self, process: Process, grid: Tensor) -> Tensor:
        """Probability [n - 1] that the log-normal falls into each cell of a descending grid [n]."""
        reached = torch.erf((-process.logsnr(grid) / 2 - self.mean) / (math.sqrt(2) * self.std))
        return (reached[:-1] - reached[1:]) / (reached[0] - reached[-1])

    def neighbours(self, process: Process, edges: Tensor, batch: Batch) -> Neighbours:
        grid = ramp(process, edges, self.points(batch.images) - 1)
        shares, grid = (sent(x, batch.rng.device) for x in (self.shares(process, grid), grid))
        i = picked(shares.expand(batch.size, -1), batch.rng)
        t, r = grid[i], grid[i + 1].clamp(min=origin(process, grid.device))
        return Neighbours(t, r, 1 / apart(process, t, r))


@dataclass(frozen=True)
class Ratio(OwnTarget):
    """ECT: neighbours at a ratio of their times (Geng et al. 2024, arXiv:2406.14548, section 3.2 and 3.3).

    r / t = 1 - n(t) / q^(a + 1), at least 0, n(t) = 1 + k sigmoid(-b t), in t = sigma / alpha; a grows by one every
    `images`; weights 1 / (difference of noise levels).

    Args:
        q, k, b: as above; q = 256 starts with neighbouring times at once.
        images: images after which a grows by one; None leaves it at 0.
        largest: bound of r / t.
        times: law of t.
    """

    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    images: int | None = None
    largest: float = 0.999
    times: AnyTimeLaw = LogNormal(-1.1, 2.0)
    law: Literal["ratio"] = "ratio"

    def ratio(self, level: Tensor, images: int) -> Tensor:
        """r / t at noise levels sigma / alpha."""
        stage = images // self.images if self.images is not None else 0
        near = (1 + self.k * torch.sigmoid(-self.b * level)) / self.q ** (stage + 1)
        return (1 - near).clamp(0, self.largest)

    def neighbours(self, process: Process, edges: Tensor, batch: Batch) -> Neighbours:
        t = self.times.sample(process, batch.size, batch.rng)
        noise = noise_level(process, t)
        r = process.time_of(-2 * (noise * self.ratio(noise, batch.images)).log())
        clean = origin(process, t.device)
        t = torch.maximum(t, 2 * clean)
        r = torch.where(r < t, r, self.largest * t).clamp(min=clean)  # r = t where there is no signal left
        return Neighbours(t, r, 1 / apart(process, t, r))


def on(grid: Tensor, process: Process, batch: Batch) -> Neighbours:
    """The ends of evenly drawn cells of a descending grid, all of one weight."""
    t, r = drawn_cell(grid, batch, process)
    return Neighbours(t, r, torch.ones_like(t))


def noise_level(process: Process, t: Time) -> Tensor:
    """sigma / alpha, the papers' sigma whatever the process."""
    return process.sigma(t) / process.alpha(t)


def apart(process: Process, t: Time, r: Time) -> Tensor:
    """The difference of two noise levels [B]; a t without signal counts as the papers' noisiest, or as twice r's."""
    high, low = noise_level(process, t), noise_level(process, r)
    noisiest = torch.where(low < Karras.sigma_max, Karras.sigma_max, 2 * low)
    return torch.where(high.isfinite(), high, noisiest) - low


def ramp(process: Process, edges: Tensor, count: int) -> Tensor:
    """`count` cells of Karras's ramp from the student's first time to clean data, and its other times between them.

    That are at least count + 1 times, descending (Karras et al. 2022, arXiv:2206.00364, eq. 5). The ramp's sigma /
    alpha run from 80 to 0.002, or where the process has less noise or begins with more, from its own to its own.
    """
    first, last = (float(noise_level(process, t[None])) for t in (edges[0], origin(process)))
    law = Karras(sigma_min=max(last, Karras.sigma_min), sigma_max=min(first, Karras.sigma_max))
    inner = law.at(process, 1 - torch.arange(1, count, dtype=torch.float64, device=edges.device) / count)
    return merged(torch.cat([edges, inner])).flip(0)


AnyCurriculum = Annotated[Ramp | Even | Root | Doubling | Ratio, Field(discriminator="law")]
"""A curriculum as a config names it.

`averaged`: whether the target is a moving average of the generator, and `ema(images)`: its decay, 0 where the generator
is its own target. `neighbours(process, edges, batch)`: pairs of times; `edges` [n + 1] are the student's descending
times and 0.
"""
