"""Shapes in words. Checked at run time only under pytest (jaxtyping + beartype)."""

from jaxtyping import Float
from torch import Tensor

Latent = Float[Tensor, "batch *dims"]
"""A sample, clean or noisy, in whatever space the denoiser works in."""

Time = Float[Tensor, " batch"]
"""Process time in [0, 1], one per sample: 0 is clean data, 1 the noisiest trained level."""

Levels = Float[Tensor, "*shape"]
"""Any number of process times, or a quantity (alpha, sigma, log-SNR ...) at each of them."""
