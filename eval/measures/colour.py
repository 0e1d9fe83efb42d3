"""Colour saturation and contrast: where guidance and distillation push images too far."""

import torch
from torch import Tensor

from .figure import Figure


def saturation_and_contrast(images: Tensor) -> Tensor:
    """Mean HSV saturation and RMS contrast (Peli 1990: standard deviation of luma) of each image.

    Args:
        images: uint8 RGB [B, 3, H, W].

    Returns:
        float32 [B, 2], both in [0, 1]; luma has the Rec. 601 weights.
    """
    pixels = images.float() / 255
    high, low = pixels.amax(1), pixels.amin(1)
    saturation = torch.where(high > 0, (high - low) / high.clamp(min=1 / 255), 0.0)
    luma = torch.einsum("bchw,c->bhw", pixels, pixels.new_tensor([0.299, 0.587, 0.114]))
    return torch.stack([saturation.mean((1, 2)), luma.std((1, 2), correction=0)], 1)


def colour_ratios(sample: Tensor, real: Tensor) -> dict[str, Figure]:
    """Means [N, 2] of `saturation_and_contrast` over those of real images; 1 is as real.

    The interval is 1.96 standard errors, of both means by the delta method.
    """
    figures = {}
    for index, name in enumerate(("saturation_ratio", "contrast_ratio")):
        a, b = sample[:, index].double(), real[:, index].double()
        ratio = float(a.mean() / b.mean().clamp(min=1e-9))
        error = 1.96 * ratio * float(_relative_variance(a) + _relative_variance(b)) ** 0.5
        figures[name] = Figure(ratio, ratio - error, ratio + error, {"mean": float(a.mean())})
    return figures


def _relative_variance(values: Tensor) -> Tensor:
    """The variance of the mean, relative to the squared mean."""
    return values.var() / len(values) / values.mean().square().clamp(min=1e-18)
