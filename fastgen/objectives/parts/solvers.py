"""Solvers of the teacher's probability flow: verbs on `Prediction.at` that hold on every process."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import BeforeValidator
from torch import Tensor

from ...models.calls import Scalars, guided, look
from ...models.conditioning import Conditioning
from ...models.contract import Denoiser
from ...models.roles import Roles
from ...models.walk import LARGEST_GUIDANCE
from ...process import Latent, Prediction, Process, Time, pad_like
from ...seeds import normal, uniform
from .base import Batch, shorthand
from .needs import Needs

SolverName = Literal["ddim", "heun", "dpm2m"]


@dataclass(frozen=True)
class Field:
    """A denoiser under guidance, evaluated without autograd.

    Args:
        model: usually the real score.
        cond: conditioning of the rows.
        w: guidance scale, one for all rows or [B]; 1 is none.
    """

    model: Denoiser
    cond: Conditioning
    w: float | Tensor = 1.0

    def __call__(self, x_t: Latent, t: Time) -> Prediction:
        if isinstance(self.w, Tensor):
            conditional, null = (guided(look, self.model, x_t, t, self.cond, w=w) for w in (1.0, 0.0))
            return self.model.guide(conditional, null, self.w)
        return guided(look, self.model, x_t, t, self.cond, w=self.w)


@dataclass(frozen=True)
class Guidance:
    """The teacher's guidance scales w, uniform in [low, high] for each sample.

    Args:
        low, high: w = 1 is none. Papers with D_c + w (D_c - D_null) mean one less (LCM's 5 to 15 are 6 to 16 here).
        told: the generator is told w / 20 through an embedding "w"; otherwise it learns the average over w.

    Raises:
        ValueError: the range is empty or leaves [0, 20].
    """

    low: float = 1.0
    high: float = 1.0
    told: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= LARGEST_GUIDANCE:
            raise ValueError(
                f"guidance is drawn from [{self.low:g}, {self.high:g}]: need 0 <= low <= high <= {LARGEST_GUIDANCE:g}"
            )

    def needs(self, *, target: bool = False) -> Needs:
        """The needs of an objective with this guidance; a target is told as much of it as the generator."""
        known = ("generator", "target") if target else ("generator",)
        guides = (self.low, self.high) != (1, 1)
        return Needs(null=guides, target=target, scalars={role: {"w"} for role in known if self.told})

    def field(self, roles: Roles, batch: Batch) -> Field:
        """The real score under scales drawn for this batch."""
        if self.low == self.high:
            return Field(roles.real_score, batch.cond, self.low)
        u = uniform(batch.rng, batch.size, dtype=torch.float64)
        return Field(roles.real_score, batch.cond, self.low + (self.high - self.low) * u)

    def scalars(self, batch: Batch, field: Field) -> Scalars:
        """What the generator is told of the field's scales."""
        w = field.w if isinstance(field.w, Tensor) else batch.full(field.w)
        return {"w": w / LARGEST_GUIDANCE} if self.told else {}


AnyScale = Annotated[Guidance, BeforeValidator(lambda raw: shorthand(raw, lambda w: Guidance(w, w)))]
"""Guidance as a config names it; a number is a fixed scale."""

Slope = Callable[[Latent, Time], Prediction]
Solver = Callable[..., Latent]
"""(field, x_t, t, s, substeps) -> x_s."""


def ddim(field: Slope, x: Latent, t: Time, s: Time, *, substeps: int = 1) -> Latent:
    """Steps of `Prediction.at`: DDIM (arXiv:2010.02502, eq. 12) and a flow's Euler; of first order."""
    for a, b in _cuts(t, s, substeps):
        x = field(x, a).at(b)
    return x


def heun(field: Slope, x: Latent, t: Time, s: Time, *, substeps: int = 1) -> Latent:
    """Heun's method on dx = x0 d alpha + eps d sigma (EDM, arXiv:2206.00364, algorithm 1); of second order.

    As there, a step that ends at clean data is not corrected.
    """
    for a, b in _cuts(t, s, substeps):
        here = field(x, a)
        end = here.at(b)
        mean = here.lerp(field(end, b), 0.5)
        corrected = (x + mean.at(b) - mean.at(a)).to(x.dtype)
        x = torch.where(pad_like(here.process.sigma(b) == 0, x), end, corrected)
    return x


def dpm2m(field: Slope, x: Latent, t: Time, s: Time, *, substeps: int = 1) -> Latent:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2): the last two x0 are extrapolated in log-SNR.

    Its first step, and one that ends at clean data, are of first order.
    """
    before: Prediction | None = None
    width = torch.zeros_like(t)
    for a, b in _cuts(t, s, substeps):
        here = field(x, a)
        h = (here.process.logsnr(b) - here.process.logsnr(a)) / 2
        x0 = here.x0
        if before is not None:
            share = torch.where(h.isfinite(), h / (2 * width), 0.0)
            x0 = (x0 + pad_like(share, x0) * (x0 - before.x0)).to(x.dtype)
        x = Prediction.of_x0(here.process, x, a, x0).at(b)
        before, width = here, h
    return x


def stochastic(
    field: Slope, x: Latent, t: Time, s: Time, *, eta: float, rng: torch.Generator, substeps: int = 1
) -> Latent:
    """DDIM with noise: eta = 0 is deterministic, eta = 1 ancestral sampling (arXiv:2010.02502, eq. 16)."""
    for a, b in _cuts(t, s, substeps):
        here = field(x, a)
        fresh = eta * _posterior(here.process, b, a)
        kept = (here.process.sigma(b) ** 2 - fresh**2).clamp(min=0).sqrt()
        noise = normal(rng, *x.shape, dtype=x.dtype)
        mean = pad_like(here.process.alpha(b), x) * here.x0 + pad_like(kept, x) * here.eps
        x = (mean + pad_like(fresh, x) * noise).to(x.dtype)
    return x


SOLVERS: dict[SolverName, Solver] = {"ddim": ddim, "heun": heun, "dpm2m": dpm2m}


def landing_on(process: Process, x_t: Latent, t: Time, x_s: Latent, s: Time) -> Prediction:
    """The prediction at (x_t, t) whose step to s < t ends in x_s.

    What a student has to say to do several steps at once (progressive distillation, arXiv:2202.00512, appendix G);
    on a flow its velocity is (x_t - x_s) / (t - s). Solved in float64.
    """
    a, b = (pad_like(level(t), x_t) for level in (process.alpha, process.sigma))
    c, d = (pad_like(level(s), x_t) for level in (process.alpha, process.sigma))
    determinant = a * d - b * c
    x0, eps = (d * x_t - b * x_s) / determinant, (a * x_s - c * x_t) / determinant
    return Prediction(process, t, x0.to(x_t.dtype), eps.to(x_t.dtype))


def _cuts(t: Time, s: Time, substeps: int) -> list[tuple[Time, Time]]:
    times = [t + (s - t) * (i / substeps) for i in range(substeps)] + [s]
    return list(pairwise(times))


def _posterior(process: Process, s: Time, t: Time) -> Tensor:
    """Standard deviation of p(x_s | x_t, x0), [B]."""
    return process.sigma(s) / process.sigma(t) * process.transition(s, t).std
