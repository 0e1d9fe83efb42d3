"""LPIPS between samples of the denoiser's space, through the autoencoder (Zhang et al. 2018, arXiv:1801.03924)."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...errors import UserError
from .codec import Codec


class Perceptual(nn.Module):
    """(x, y) -> distances [B], differentiable in x; frozen.

    Args:
        codec: decodes samples to images [B, 3, H, W] in [-1, 1].
        network: torchmetrics' LPIPS network, on the device of the samples.
    """

    def __init__(self, codec: Codec, network: nn.Module) -> None:
        super().__init__()
        frozen = network.requires_grad_(False).eval()
        self._parts = (codec, frozen)  # a tuple, so that neither's weights, which are published files, are its state

    @property
    def published(self) -> Mapping[str, nn.Module]:
        """LPIPS' network."""
        return {"network": self._parts[1]}

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        codec, network = self._parts
        with torch.no_grad():
            wanted = codec.images_of(y)
        distances: Tensor = network(codec.images_of(x), wanted)
        return distances.flatten()


def lpips_network() -> nn.Module:
    """VGG's LPIPS with the published weights, from torch's hub cache or downloaded.

    Raises:
        UserError: torchmetrics is not installed, or the weights are neither there nor can be had.
    """
    try:
        from torchmetrics.functional.image.lpips import _NoTrainLpips
    except ImportError as error:
        raise UserError(
            "regression by LPIPS needs torchmetrics: pip install torchmetrics, or set distance=pseudo_huber"
        ) from error
    try:
        return _NoTrainLpips(net="vgg")
    except OSError as error:
        raise UserError(
            f"the VGG weights of LPIPS could not be had ({error}): put torchvision's vgg16-397923af.pth into "
            f"{torch.hub.get_dir()}/checkpoints, or set distance=pseudo_huber"
        ) from error
