"""Samplers over a Denoiser: few lines, and the same numbers as the exported stock pipeline."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..objectives.ops import guided, look

Noise = Callable[[], Tensor]


def ode(model: Denoiser, noise: Tensor, cond: Conditioning, times: Sequence[float], *, guidance: float = 1.0) -> Tensor:
    """Deterministic: each step keeps the predicted noise; the last ends at clean data.

    Args:
        noise: unit noise [B, ...].
        times: descending process times, without the clean end.
        guidance: w of uncond + w (cond - uncond).
    """
    x = model.process.prior(noise, _full(noise, times[0]))
    for t, s in zip(times, [*times[1:], 0.0], strict=True):
        x = guided(look, model, x, _full(noise, t), cond, w=guidance).at(_full(noise, s))
    return x


def renoise(model: Denoiser, noise: Noise, cond: Conditioning, times: Sequence[float]) -> Tensor:
    """Each step predicts the clean sample and carries it to the next time with fresh noise.

    Args:
        noise: draws unit noise [B, ...]; called once for each time.
        times: descending process times, without the clean end.
    """
    first = noise()
    t = _full(first, times[0])
    x0 = look(model, model.process.prior(first, t), t, cond).x0
    for following in times[1:]:
        t = _full(first, following)
        x0 = look(model, model.process.renoise(x0, t, noise()), t, cond).x0
    return x0


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> Noise:
    """Unit noise from one CPU generator per sample, as a stock pipeline draws it from a list of generators."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(tuple(shape), generator=rng) for rng in streams]).to(device)


def _full(like: Tensor, t: float) -> Tensor:
    return torch.full((len(like),), float(t), dtype=torch.float64, device=like.device)
