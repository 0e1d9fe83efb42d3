import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from eval.measures.spectrum import Spectrum, SpectrumMean, default_edges, nyquist_peak, spectrum_db
from fastgen.errors import UserError


def spectrum_of(*batches: Tensor) -> Spectrum:
    mean = SpectrumMean()
    for batch in batches:
        mean.update(batch)
    return mean.spectrum()


def noise(count: int = 200, *, seed: int = 0, height: int = 32, width: int = 32) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), generator=rng, dtype=torch.uint8)


@cache
def photos(*, seed: int = 0) -> Tensor:
    """Noise with the falling spectrum of photographs: power 1 / f^2, then rounded to uint8."""
    rng = torch.Generator().manual_seed(seed)
    frequency = torch.hypot(torch.fft.fftfreq(32)[:, None], torch.fft.fftfreq(32)[None, :]).clamp(min=1 / 32)
    shaped = torch.fft.ifft2(torch.fft.fft2(torch.randn(400, 3, 32, 32, generator=rng)) / frequency).real
    return (shaped * 6 + 128).round().clamp(0, 255).to(torch.uint8)


def with_pattern(images: Tensor, pattern: Tensor, levels: float) -> Tensor:
    return (images + levels * pattern).round().clamp(0, 255).to(torch.uint8)


STRIPES = torch.tensor([1.0, -1.0]).repeat(16)
PATTERNS = {
    "checkerboard": STRIPES[:, None] * STRIPES[None, :],
    "rows": STRIPES[:, None].expand(32, 32),
    "columns": STRIPES[None, :].expand(32, 32),
}


def test_default_edges_are_those_of_the_32_px_protocol_and_scale() -> None:
    assert default_edges(32) == (1, 4, 8, 12, 16, 23)
    assert default_edges(512) == (1, 64, 128, 192, 256, 363)


def test_white_noise_is_flat_at_its_variance() -> None:
    power = spectrum_of(noise(400)).power
    variance = (256**2 - 1) / 12 / 255**2
    assert power.flatten()[1:].mean() == pytest.approx(variance, rel=0.01)
    assert power.flatten()[1:].std() < 0.05 * variance
    bands = spectrum_db(spectrum_of(noise(seed=1)), spectrum_of(noise(seed=2)))
    assert [band.label for band in bands] == ["1-4", "4-8", "8-12", "12-16", "16-23"]
    assert all(abs(band.db) < 0.3 for band in bands)


@pytest.mark.parametrize(("cycles", "band"), [((0, 2), 0), ((5, 5), 1), ((9, 0), 2), ((10, 10), 3), ((15, 15), 4)])
def test_a_wave_raises_the_band_of_its_frequency_only(cycles: tuple[int, int], band: int) -> None:
    rows, columns = (torch.arange(32) * count / 32 for count in cycles)
    wave = torch.cos(2 * math.pi * (rows[:, None] + columns[None, :]))
    real = photos()
    levels = [band.db for band in spectrum_db(spectrum_of(with_pattern(real, wave, 16)), spectrum_of(real))]
    assert levels.pop(band) > 1
    assert all(abs(level) < 0.2 for level in levels)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_of_period_two_is_a_nyquist_peak(name: str) -> None:
    real = photos(seed=1)
    peak = nyquist_peak(spectrum_of(with_pattern(photos(seed=2), PATTERNS[name], 3)), spectrum_of(real))
    assert peak > 6


def test_a_modulated_pattern_is_a_nyquist_peak_too() -> None:
    left = PATTERNS["checkerboard"] * (torch.arange(32) < 16)
    peak = nyquist_peak(spectrum_of(with_pattern(photos(seed=2), left, 3)), spectrum_of(photos(seed=1)))
    assert peak > 6


def test_images_like_the_real_ones_have_no_nyquist_peak() -> None:
    assert abs(nyquist_peak(spectrum_of(photos(seed=2)), spectrum_of(photos(seed=1)))) < 1
    assert abs(nyquist_peak(spectrum_of(noise(seed=2)), spectrum_of(noise(seed=1)))) < 1


def test_other_frequencies_do_not_move_the_nyquist_peak() -> None:
    real = photos() // 2 + 16
    wave = torch.cos(2 * math.pi * 3 * torch.arange(32) / 32)
    assert nyquist_peak(spectrum_of(with_pattern(real + 90, wave, 30)), spectrum_of(real)) == pytest.approx(0, abs=0.2)


def test_a_blur_lowers_the_high_bands_most() -> None:
    real = photos()
    kernel = torch.tensor([0.25, 0.5, 0.25])
    kernel = (kernel[:, None] * kernel[None, :]).expand(3, 1, 3, 3)
    padded = F.pad(real.float(), (1, 1, 1, 1), mode="circular")
    blurred = F.conv2d(padded, kernel, groups=3).round().to(torch.uint8)
    levels = [band.db for band in spectrum_db(spectrum_of(blurred), spectrum_of(real))]
    assert levels == sorted(levels, reverse=True)
    assert levels[0] > -1
    assert levels[-1] < -8


def test_the_mean_does_not_depend_on_batches() -> None:
    images = noise(50)
    whole, cut = spectrum_of(images), spectrum_of(*images.split(7))
    torch.testing.assert_close(cut.power, whole.power, rtol=1e-6, atol=0)
    assert (cut.count, whole.count) == (50, 50)


def test_frequencies_of_oblong_images_count_per_shorter_side() -> None:
    wave = torch.cos(2 * math.pi * 10 * torch.arange(64) / 64)  # 10 cycles per long side, 5 per 32 pixels
    images = noise(100, height=32, width=64) // 4 + 96
    levels = [b.db for b in spectrum_db(spectrum_of(with_pattern(images, wave, 8)), spectrum_of(images))]
    assert max(levels) == levels[1] > 0.5


def test_flat_images_have_finite_levels() -> None:
    flat = spectrum_of(torch.full((4, 3, 32, 32), 7, dtype=torch.uint8))
    assert all(-80 < band.db < -30 for band in spectrum_db(flat, spectrum_of(noise())))
    assert math.isfinite(nyquist_peak(flat, spectrum_of(noise())))


def test_unusable_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="8 x 32 pixels are too small"):
        spectrum_of(noise(1, width=8))
    with pytest.raises(UserError, match="16 x 16 pixels follow 32 x 32"):
        spectrum_of(noise(1), noise(1, height=16, width=16))
    small, large = spectrum_of(noise(1, height=16, width=16)), spectrum_of(noise(1))
    for compare in (spectrum_db, nyquist_peak):
        with pytest.raises(UserError, match="16 x 16 px images cannot be compared with that of 32 x 32"):
            compare(small, large)


def test_an_empty_band_is_refused() -> None:
    with pytest.raises(ValueError, match=r"30 <= f < 40"):
        spectrum_db(spectrum_of(noise(1)), spectrum_of(noise(1)), edges=(1, 30, 40))
