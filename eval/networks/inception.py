"""Inception-v3 of 2015 as TorchScript: the network of published FID figures, in the conventions of its users.

- clean: Parmar et al. 2022, arXiv 2104.11222. PIL's antialiased bicubic to 299 px on unrounded floats, clipped to
  [0, 255]; (x - 128) / 128; the layers without the network's own resize.
- edm, adm: Karras et al. 2022, arXiv 2206.00364, and Dhariwal and Nichol 2021, arXiv 2105.05233. uint8 images as
  they are; the network resizes as TensorFlow 1 did.
"""

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgen.errors import UserError
from fastgen.files import sha256_file

from .extractors import Sight
from .precision import Precision, computing

SIDE = 299
Convention = Literal["clean", "edm", "adm"]


class InceptionExtractor:
    """Features [B, 2048], or what the file gives, of a TorchScript Inception file.

    Args:
        file: TorchScript file with a submodule `layers`, and for edm and adm the arguments `return_features` and
            `no_output_bias`.

    Raises:
        UserError: the file is no such network.
    """

    classes: tuple[str, ...] = ()
    resizes = True

    def __init__(
        self, file: Path, convention: Convention, *, device: str | torch.device, precision: Precision = "float32"
    ) -> None:
        self.device = torch.device(device)
        self._convention, self._precision = convention, precision
        self._layout = torch.channels_last if precision == "tf32" else torch.contiguous_format  # faster in TF32
        try:
            self._network: Any = torch.jit.load(file, map_location=self.device).eval()
            self.dim = self(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape[1]
        except (RuntimeError, AttributeError, ValueError, OSError) as error:
            raise UserError(
                f"{file} cannot be used as a TorchScript Inception network ({' '.join(str(error).split())[:200]}); "
                "the protocols clean, edm and adm need the published file"
            ) from error
        resize = f"bicubic antialiased float {SIDE} px" if convention == "clean" else "resize inside, uint8"
        self.identity = f"TorchScript {sha256_file(file)[:12]}, {resize}, {self.dim}, {precision}"

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images [B, 3, H, W] -> float32 features [B, d]."""
        return self.see(images).features

    @torch.inference_mode()
    def see(self, images: Tensor) -> Sight:
        """Features and, by edm and adm, the logits of the Inception score, up to a constant."""
        images = images.to(self.device)
        with computing(self._precision):
            if self._convention == "clean":
                pixels = ((clean_resize(images) - 128) / 128).to(memory_format=self._layout)
                return Sight(self._network.layers(pixels).flatten(1).float(), None)
            features = self._network(images, return_features=True).flatten(1).float()
            shares = self._network(images, no_output_bias=True).float()
        return Sight(features, shares.clamp(min=torch.finfo(torch.float32).tiny).log())


def clean_resize(images: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 [B, 3, 299, 299] in [0, 255], within 1e-4 levels of PIL's mode F."""
    if images.shape[-2:] == (SIDE, SIDE):
        return images.float()
    sized = F.interpolate(images.double(), (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False)
    return sized.clamp(0, 255).float()
