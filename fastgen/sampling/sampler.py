"""Samplers over a Denoiser: few lines, and the same numbers as the exported stock pipeline."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..models.calls import guided, look
from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..objectives.parts.solvers import LARGEST

Noise = Callable[[], Tensor]
Told = Mapping[float, Mapping[str, float]]
"""Values of the scalars that a network is told at each of its stops."""
NOTHING: Told = {}

AT_ONCE = 256
"""Small samples that are drawn together."""


def told_at(grid: Sequence[float], names: Sequence[str], *, deterministic: bool, guidance: float | None) -> Told:
    """What a student's embeddings are told at its stops: "s", where a step leads, and "w", its guidance.

    Args:
        grid: descending process times.
        deterministic: steps lead to the following stop; otherwise to clean data, which is then renoised.
        guidance: w.
    """
    ends = [*grid[1:], 0.0] if deterministic else [0.0] * len(grid)
    values = [{"s": s, "w": (guidance or 0.0) / LARGEST} for s in ends]
    return {t: {name: value[name] for name in names} for t, value in zip(grid, values, strict=True)}


def ode(
    model: Denoiser,
    noise: Tensor,
    cond: Conditioning,
    times: Sequence[float],
    *,
    guidance: float = 1.0,
    told: Told = NOTHING,
) -> Tensor:
    """Deterministic: each step keeps the predicted noise; the last ends at clean data.

    Args:
        noise: unit noise [B, ...].
        times: descending process times, without the clean end.
        guidance: w of uncond + w (cond - uncond).
        told: scalars at the times.
    """
    x = model.process.prior(noise, _full(noise, times[0]))
    for t, s in zip(times, [*times[1:], 0.0], strict=True):
        scalars = _scalars(told, noise, t)
        x = guided(look, model, x, _full(noise, t), cond, scalars, w=guidance).at(_full(noise, s))
    return x


def renoise(
    model: Denoiser, noise: Noise, cond: Conditioning, times: Sequence[float], *, told: Told = NOTHING
) -> Tensor:
    """Each step predicts the clean sample and carries it to the next time with fresh noise.

    Args:
        noise: draws unit noise [B, ...]; called once for each time.
        times: descending process times, without the clean end.
        told: scalars at the times.
    """
    first = noise()
    t = _full(first, times[0])
    x0 = look(model, model.process.prior(first, t), t, cond, _scalars(told, first, times[0])).x0
    for following in times[1:]:
        t = _full(first, following)
        x_t = model.process.renoise(x0, t, noise())
        x0 = look(model, x_t, t, cond, _scalars(told, first, following)).x0
    return x0


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Noise:
    """Unit noise from one CPU generator per sample, as a stock pipeline draws it from a list of generators."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(tuple(shape), generator=rng) for rng in streams]).to(device)


def _scalars(told: Told, like: Tensor, t: float) -> dict[str, Tensor]:
    return {name: _full(like, value) for name, value in told.get(t, {}).items()}


def _full(like: Tensor, t: float) -> Tensor:
    return torch.full((len(like),), float(t), dtype=torch.float64, device=like.device)
