"""Radial power spectra: what a Frechet distance in classifier features does not see.

The power at a frequency is the mean over images and RGB channels of |FFT|^2 / (H W), of pixels in [0, 1] with
neither window nor padding. Frequencies are in cycles per image; of an oblong image, per its shorter side.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from fastgen.errors import UserError

from ..rows import Band

MIN_SIDE = 16
"""Shorter side in pixels below which bands and the surroundings of a peak hold too few frequencies."""

_ROUNDING = 1 / 255**2 / 12
"""Power of rounding to uint8; what lies below it (flat images) counts as it."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Mean power [H, W], float64, in the frequency order of `torch.fft.fft2`, of `count` images."""

    power: Tensor
    count: int


class SpectrumMean:
    """Streaming mean of the power of image batches that share one size."""

    def __init__(self) -> None:
        self._total = torch.zeros(())
        self._count = 0

    def update(self, images: Tensor) -> None:
        """Adds uint8 images [B, C, H, W].

        Raises:
            UserError: their size is not that of the images before, or has a side below `MIN_SIDE`.
        """
        size = images.shape[-2:]
        if min(size) < MIN_SIDE:
            raise UserError(
                f"images of {size[1]} x {size[0]} pixels are too small for a power spectrum; it needs "
                f"{MIN_SIDE} pixels per side"
            )
        if self._count and size != self._total.shape:
            seen = self._total.shape
            raise UserError(
                f"A power spectrum needs images of one size, but {size[1]} x {size[0]} pixels follow "
                f"{seen[1]} x {seen[0]}. Crop or resize the images alike first."
            )
        power = torch.fft.fft2(images.float() / 255).abs().square().mean(1).sum(0, dtype=torch.float64)
        self._total = self._total + power.cpu() / size.numel()
        self._count += len(images)

    def merge(self, other: "SpectrumMean") -> None:
        """Adds the images of `other`, of the same size, for example those of another process."""
        self._total = self._total + other._total
        self._count += other._count

    def spectrum(self) -> Spectrum:
        return Spectrum(self._total / self._count, self._count)


def default_edges(side: int) -> tuple[float, ...]:
    """Band edges for images whose shorter side has `side` pixels: 1 4 8 12 16 23 at 32 px.

    They lie at 1/8, 1/4, 3/8, 1/2 (Nyquist along an axis) and just above 1 / sqrt 2 (its corner) of `side`.
    """
    return (1.0, side / 8, side / 4, 3 * side / 8, side / 2, float(math.ceil(side / math.sqrt(2))))


def spectrum_db(sample: Spectrum, real: Spectrum, edges: Sequence[float] | None = None) -> tuple[Band, ...]:
    """Mean power of each band of `sample` over that of `real`, in dB; 0 is equal, negative is too smooth.

    Raises:
        UserError: the spectra belong to different image sizes.
        ValueError: a band holds no frequency.
    """
    _require_same_size(sample, real)
    radius = _radius(real.power.shape)
    bands = []
    for low, high in pairwise(edges or default_edges(min(real.power.shape))):
        inside = (radius >= low) & (radius < high)
        if not inside.any():
            raise ValueError(f"no frequency f of these images satisfies {low:g} <= f < {high:g}")
        bands.append(Band(low, high, _db(sample.power[inside], real.power[inside])))
    return tuple(bands)


def radial_profile(spectrum: Spectrum) -> list[float]:
    """Mean power at 1, 2, 3 ... cycles per image (of the shorter side), each within half a cycle."""
    radius = _radius(spectrum.power.shape).round().long().flatten()
    total = torch.bincount(radius, spectrum.power.flatten())
    mean: list[float] = (total / torch.bincount(radius).clamp(min=1))[1:].tolist()
    return mean


def nyquist_peak(sample: Spectrum, real: Spectrum) -> float:
    """How far the highest frequencies stick out of their surroundings, in dB, beyond what real images do.

    A pattern of period two pixels (checkerboard, rows or columns: the trace of a stride-2 upsampling) is a peak at
    one of the three frequencies whose components are 0 or Nyquist. Each is compared with the ring around it, in
    `sample` and in `real`; the largest excess counts. Near 0 without such a pattern.

    Raises:
        UserError: the spectra belong to different image sizes.
    """
    _require_same_size(sample, real)
    excess = [
        _prominence(sample.power, row, column) - _prominence(real.power, row, column)
        for row, column in ((0.0, 0.5), (0.5, 0.0), (0.5, 0.5))
    ]
    return max(excess)


def _prominence(power: Tensor, row: float, column: float) -> float:
    """Level of the core at (row, column), in cycles per pixel, over the ring around it, in dB."""
    distance = torch.maximum(
        _wrapped_distance(power.shape[0], row)[:, None], _wrapped_distance(power.shape[1], column)[None, :]
    )
    core = max(1, min(power.shape) // 32)
    ring = (distance > core) & (distance <= 3 * core)
    return _db(power[distance <= core], power[ring])


def _wrapped_distance(side: int, frequency: float) -> Tensor:
    """|f - frequency| of the FFT's frequencies along one axis, in cycles per image, on the circle."""
    offset = (torch.arange(side) / side - frequency) % 1
    return torch.minimum(offset, 1 - offset) * side


def _radius(size: torch.Size) -> Tensor:
    rows, columns = (torch.fft.fftfreq(side, dtype=torch.float64) for side in size)
    return torch.hypot(rows[:, None], columns[None, :]) * min(size)


def _require_same_size(sample: Spectrum, real: Spectrum) -> None:
    if sample.power.shape != real.power.shape:
        (height, width), (real_height, real_width) = sample.power.shape, real.power.shape
        raise UserError(
            f"the power spectrum of {width} x {height} px images cannot be compared with that of "
            f"{real_width} x {real_height} px real images; resize the real images to the samples' size"
        )


def _db(power: Tensor, reference: Tensor) -> float:
    level, base = (max(float(values.mean()), _ROUNDING) for values in (power, reference))
    return 10 * math.log10(level / base)
