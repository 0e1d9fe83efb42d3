"""LPIPS with AlexNet (Zhang et al. 2018, arXiv 1801.03924, eq. 1) as distances between vectors.

LPIPS is a weighted sum of squares of differences of unit-normalised activations, averaged over positions. With the
roots of the weights and of 1 / positions multiplied in, it is the squared Euclidean distance of two vectors, so that
all pairs of n images cost n passes. The weights of the sum are a file of the installed torchmetrics package, as trusted
as its code; those of AlexNet are the user's.
"""

from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import alexnet

from fastgen.errors import UserError

from .precision import Precision, computing
from .weights import CONVERT_ALEXNET

SIDE = 64
"""Images are brought to this side first by averaging areas: the size of the patches it was fitted on."""

_TAPS = (1, 4, 7, 9, 11)  # the five rectifiers among AlexNet's layers
_MEAN, _STD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]


class Lpips:
    """Vectors [B, d] whose squared distances are LPIPS at 64 px.

    Args:
        file: the state dict of torchvision's AlexNet, as safetensors.

    Raises:
        UserError: it is another file; for a pickled one the message says how to convert it.
    """

    def __init__(self, file: Path, *, device: torch.device, precision: Precision = "float32") -> None:
        self._device, self._precision = device, precision
        network = alexnet(weights=None)
        try:
            network.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(
                f"{file} does not hold the weights of torchvision's AlexNet as safetensors "
                f"({' '.join(str(error).split())[:200]}). Pickled files are not read; convert the published one: "
                f"{CONVERT_ALEXNET}."
            ) from error
        self._layers: nn.Module = network.features[: _TAPS[-1] + 1].to(device).eval()
        self._weights = [weight.to(device) for weight in _weights()]

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> float32 [B, d]."""
        mean, std = (torch.tensor(values, device=self._device).view(3, 1, 1) for values in (_MEAN, _STD))
        pixels = images.to(self._device).float() / 127.5 - 1
        x = F.interpolate((pixels - mean) / std, (SIDE, SIDE), mode="area")
        parts: list[Tensor] = []
        with computing(self._precision):
            for depth, layer in enumerate(self._layers.children()):
                x = layer(x)
                if depth in _TAPS:
                    parts.append(_scaled(x.float(), self._weights[len(parts)]))
        return torch.cat(parts, 1)


def _scaled(activations: Tensor, weights: Tensor) -> Tensor:
    unit = activations / (activations.square().sum(1, keepdim=True) + 1e-8).sqrt()
    return (unit * (weights / unit[0, 0].numel()).sqrt()).flatten(1)


def _weights() -> list[Tensor]:
    """The weights of each layer's channels, [1, C, 1, 1], none negative."""
    spec = find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    file = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    state = torch.load(file, map_location="cpu", weights_only=True)
    return [state[f"lin{depth}.model.1.weight"] for depth in range(len(_TAPS))]
