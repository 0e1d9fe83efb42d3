"""The two samplers over a Denoiser: the same numbers as the exported stock pipeline."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..models.walk import NOTHING, NoiseStream, StopScalars, sample

SAMPLES_AT_ONCE = 256
"""Small samples that are drawn together."""


def ode(
    model: Denoiser,
    noise: Tensor,
    cond: Conditioning,
    times: Sequence[float],
    *,
    guidance: float = 1.0,
    scalars: StopScalars = NOTHING,
) -> Tensor:
    """Samples deterministically: each step keeps the predicted noise, and the last one ends at clean data.

    Args:
        noise: unit noise [B, ...].
        times: descending process times, without the clean end.
        guidance: w of uncond + w (cond - uncond).
        scalars: scalars that the network is told at the times.
    """
    return sample(model, lambda: noise, cond, times, sampler="ode", guidance=guidance, scalars=scalars)


def renoise(
    model: Denoiser, noise: NoiseStream, cond: Conditioning, times: Sequence[float], *, scalars: StopScalars = NOTHING
) -> Tensor:
    """Samples by predicting the clean sample at each step and renoising it to the next time with fresh noise.

    Args:
        noise: called once for each time.
        times: descending process times, without the clean end.
        scalars: scalars that the network is told at the times.
    """
    return sample(model, noise, cond, times, sampler="renoise", scalars=scalars)


def seeded_noise(seeds: Sequence[int], shape: Sequence[int], device: torch.device) -> NoiseStream:
    """Unit noise from one CPU generator per sample, as a stock pipeline draws it from a list of generators."""
    streams = [torch.Generator().manual_seed(seed) for seed in seeds]
    return lambda: torch.stack([torch.randn(tuple(shape), generator=rng) for rng in streams]).to(device)
