"""A discriminator of decoded samples: heads on what a frozen vision model sees (ADD, arXiv:2311.17042, section 3.2).

As in StyleGAN-T (Sauer et al. 2023, arXiv:2301.09515), after which ADD's is made, a head reads the tokens of one block
and is told what was asked for by a projection (Miyato & Koyama 2018, arXiv:1802.05637).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..process import Latent, Time
from .condition_embedding import ConditionEmbedding
from .conditioning import Conditioning
from .discriminator import FeatureDiscriminator, zeroed
from .image_part import Example

Vision = Callable[[Tensor], Sequence[Tensor]]
"""Images [B, 3, H, W] in [-1, 1] -> tokens [B, N, D] of each block that is read, with the graph to the images."""
WIDTH = 256
"""Of the vector that says what was asked for."""


class PixelHead(nn.Module):
    """A logit from tokens [B, N, D] and from what was asked for [B, C], if anything was; zero at first."""

    def __init__(self, width: int, told: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.logit = zeroed(nn.Linear(width, 1))
        self.told = zeroed(nn.Linear(told, width)) if told else None

    def forward(self, tokens: Tensor, asked: Tensor | None) -> Tensor:
        seen = self.body(tokens)
        logits: Tensor = self.logit(seen).flatten(1).mean(dim=1)
        if self.told is None:
            return logits
        projected: Tensor = (seen.mean(dim=1) * self.told(asked)).mean(dim=1)
        return logits + projected


class PixelDiscriminator(FeatureDiscriminator):
    """(x0, t, cond) -> logits [B, k] of clean samples, one for each block that is read; the time is not read.

    Real samples come through the autoencoder like generated ones, so that its traces do not tell them apart. Every
    frame of a video is seen by itself; images of one channel are seen as grey.

    Args:
        decode: samples -> images [B, C, H, W] or videos [B, C, F, H, W] in [-1, 1], with the graph to the samples.
        vision: a frozen vision model; it is not a part of this module's parameters.
        example: clean samples, their times and conditioning, to size the heads by.
    """

    def __init__(self, decode: Callable[[Latent], Tensor], vision: Vision, example: Example) -> None:
        super().__init__()
        self._parts = (decode, vision)  # a tuple, so that neither's weights, which are published files, are its state
        x0, t, cond = example
        asked = ConditionEmbedding(cond, WIDTH)
        self.asked = asked if asked.says_something else None
        with torch.no_grad():
            features = self.features(x0, t, cond)
        told = WIDTH if asked.says_something else 0
        self.heads = nn.ModuleList(PixelHead(tokens.shape[-1], told) for tokens in features)

    @property
    def published(self) -> Mapping[str, nn.Module]:
        """The vision model, where it is a module."""
        _, vision = self._parts
        return {"vision model": vision} if isinstance(vision, nn.Module) else {}

    def features(self, x_t: Latent, t: Time, cond: Conditioning) -> list[Tensor]:
        """Tokens [B, N, D] of each block, those of all frames one after the other."""
        decode, vision = self._parts
        images = decode(x_t)
        frames = images.transpose(1, 2).flatten(0, 1) if images.ndim == 5 else images
        colours = frames.expand(-1, 3, *frames.shape[2:]) if frames.ndim == 4 and frames.shape[1] == 1 else frames
        return [tokens.unflatten(0, (len(images), -1)).flatten(1, 2) for tokens in vision(colours)]

    def judged(self, features: Sequence[Tensor], cond: Conditioning) -> Tensor:
        asked = None if self.asked is None else self.asked(cond)
        logits = [head(tokens, asked) for head, tokens in zip(self.heads, features, strict=True)]
        return torch.stack(logits, dim=1)
