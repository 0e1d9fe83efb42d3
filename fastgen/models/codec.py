"""Images to what the denoiser works in, and back."""

from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline
from torch import Tensor


class Codec(Protocol):
    """Between images [B, C, H, W] in [-1, 1] and samples [B, ...] of the denoiser's space."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, x0: Tensor) -> Tensor: ...


class PixelCodec:
    """The denoiser works on pixels."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, x0: Tensor) -> Tensor:
        return x0.clamp(-1, 1)


class VAECodec:
    """The denoiser works on normalised latents of an autoencoder: (z - shift) * scale."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae.requires_grad_(False).eval()
        self.scale = float(vae.config.scaling_factor)
        self.shift = float(vae.config.get("shift_factor") or 0.0)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        z = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode()
        return (z.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        z = (x0 / self.scale + self.shift).to(self.vae.dtype)
        return self.vae.decode(z, return_dict=False)[0].float().clamp(-1, 1)


def codec_of(pipe: DiffusionPipeline) -> Codec:
    """The pipeline's own autoencoder, or none."""
    vae = pipe.components.get("vae")
    return PixelCodec() if vae is None else VAECodec(vae)
