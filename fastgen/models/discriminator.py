"""Discriminator heads on a denoiser's intermediate features (DMD2, arXiv:2405.14867, section 4.3)."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..process import Latent, Prediction, Time
from .conditioning import Conditioning
from .contract import BELIEF, Denoiser
from .image_part import Example, ImagePart, image_parts

HeadKind = Literal["trained", "mean"]


class MapHead(nn.Module):
    """A logit from a feature map [B, C, H, W]: strided convolutions to at most 4 x 4, then a convolution over it."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        halvings = max(0, math.ceil(math.log2(size / 4)))
        blocks: list[nn.Module] = []
        for _ in range(halvings):
            blocks += [nn.Conv2d(channels, channels, 4, stride=2, padding=1), _norm(channels), nn.SiLU()]
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(channels, channels, 3, padding=1), _norm(channels), nn.SiLU())
        self.logit = zeroed(nn.Conv2d(channels, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.logit(self.blocks(features))
        return logits.mean(dim=(1, 2, 3))


class TokenHead(nn.Module):
    """A logit from tokens [B, N, D] or a vector [B, D]: a small perceptron, averaged over the tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU())
        self.logit = zeroed(nn.Linear(width, 1))

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.logit(self.body(features))
        return logits.flatten(1).mean(dim=1)


class MeanHead(nn.Module):
    """Logits that are the mean over channels: no parameters, the backbone learns (SiDA, arXiv:2410.14919)."""

    def forward(self, features: Tensor) -> Tensor:
        channels = -1 if features.ndim < 4 else 1
        return features.mean(dim=channels).reshape(len(features), -1)


class VideoHead(nn.Module):
    """A logit from a video feature map [B, C, F, H, W]: the map head on every frame, averaged."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.frame = MapHead(channels, size)

    def forward(self, features: Tensor) -> Tensor:
        frames = features.transpose(1, 2)
        logits: Tensor = self.frame(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])
        return logits.mean(dim=1)


class FeatureDiscriminator(nn.Module, ABC):
    """(x_t, t, cond) -> logits [B, k] by heads on features of a network that is no part of it; large means real."""

    heads: nn.ModuleList

    @abstractmethod
    def features(self, x_t: Latent, t: Time, cond: Conditioning) -> list[Tensor]:
        """What the heads read, one tensor for each."""

    @abstractmethod
    def judged(self, features: Sequence[Tensor], cond: Conditioning) -> Tensor:
        """The logits [B, k] of such features."""

    def forward(self, x_t: Latent, t: Time, cond: Conditioning) -> Tensor:
        return self.judged(self.features(x_t, t, cond), cond)

    def ratio(self, x_t: Latent, t: Time, cond: Conditioning) -> Tensor:
        """log p_real / p_fake [B]: the optimum of the logistic loss, and of no other."""
        logits: Tensor = self(x_t, t, cond)
        return logits.mean(dim=1)


class Discriminator(FeatureDiscriminator):
    """Heads on layers of a denoiser: one logit per tapped layer or, of mean heads, per place in them.

    Of what a layer returns it reads the image's part alone, see `image_part`.

    Args:
        backbone: the denoiser whose features are read; it is not a part of this module's parameters.
        layers: names of its layers.
        example: an input of the backbone, to find the image's parts and to size the heads by.
        heads: "trained" on the features, or their "mean" without parameters of its own.
        width: features of a layer that a head reads side by side; 2 for jumps, see `JumpDiscriminator`.

    Raises:
        UserError: a layer returns nothing of the image.
    """

    def __init__(
        self,
        backbone: Denoiser,
        layers: Sequence[str],
        example: Example,
        *,
        heads: HeadKind = "trained",
        width: int = 1,
    ) -> None:
        super().__init__()
        self._backbone = (backbone,)  # a tuple, so that it is not registered as a submodule
        self.layers = tuple(layers)
        self.parts = _found(self.layers, image_parts(backbone, self.layers, example))
        with torch.no_grad():
            features = [side_by_side([feature] * width) for feature in self.features(*example)]
        self.heads = nn.ModuleList(MeanHead() if heads == "mean" else _head_for(feature) for feature in features)

    def features(self, x_t: Latent, t: Time, cond: Conditioning) -> list[Tensor]:
        """The image's part of what each layer returns: maps [B, C, ...], tokens [B, N, D] or vectors [B, D]."""
        return self._read(self.backbone.tap(x_t, t, cond, self.layers), cond)

    def with_belief(self, x_t: Latent, t: Time, cond: Conditioning) -> tuple[Tensor, Prediction]:
        """Logits, and what the backbone believes of the same samples: both of one call of it."""
        *outputs, belief = self.backbone.tap(x_t, t, cond, (*self.layers, BELIEF))
        return self.judged(self._read(outputs, cond), cond), belief

    @property
    def backbone(self) -> Denoiser:
        """The denoiser whose features are read."""
        return self._backbone[0]

    def _read(self, outputs: Sequence[Any], cond: Conditioning) -> list[Tensor]:
        return [part.of(output, cond) for part, output in zip(self.parts, outputs, strict=True)]

    def judged(self, features: Sequence[Tensor], cond: Conditioning) -> Tensor:
        logits = [head(feature) for head, feature in zip(self.heads, features, strict=True)]
        return torch.cat([logit.reshape(len(logit), -1) for logit in logits], dim=1)


def side_by_side(features: Sequence[Tensor]) -> Tensor:
    """Features of one form, [B, C, ...] or [B, N, D], channel by channel."""
    return torch.cat(list(features), dim=1 if features[0].ndim > 3 else -1)


def default_layers(net: nn.Module, backbone: Denoiser, example: Example) -> tuple[str, ...]:
    """The bottleneck of a U-Net, or the middle block of the longest stack of blocks that the image passes through.

    Args:
        net: the network that has the layers' names.
        backbone: a denoiser over one like it.
        example: an input of the backbone.

    Raises:
        UserError: the network has neither.
    """
    if hasattr(net, "mid_block"):
        return ("mid_block",)
    stacks = sorted(_stacks(net).items(), key=lambda item: -len(item[1]))
    middles = [f"{name}.{len(stack) // 2}" for name, stack in stacks]
    parts = image_parts(backbone, middles, example)
    for layer, part in zip(middles, parts, strict=True):
        if part is not None:
            return (layer,)
    raise UserError(f"{type(net).__name__} has no bottleneck and no stack of blocks: name discriminator.layers")


def block_layers(net: nn.Module, backbone: Denoiser, example: Example) -> tuple[str, ...]:
    """Every block that the image passes through as a whole: those of all stacks, and a U-Net's bottleneck.

    Args:
        net, backbone, example: as of `default_layers`.

    Raises:
        UserError: the network has none.
    """
    blocks = [f"{name}.{i}" for name, stack in _stacks(net).items() for i, _ in stack.named_children()]
    blocks += ["mid_block"] * hasattr(net, "mid_block")
    parts = image_parts(backbone, blocks, example)
    found = tuple(layer for layer, part in zip(blocks, parts, strict=True) if part is not None)
    if not found:
        raise UserError(f"{type(net).__name__} has no block that the image passes through: name discriminator.layers")
    return found


def _stacks(net: nn.Module) -> dict[str, nn.ModuleList]:
    """The lists of modules that are no part of a member of another list."""
    lists = {name: module for name, module in net.named_modules() if isinstance(module, nn.ModuleList) and len(module)}
    return {name: stack for name, stack in lists.items() if not any(name.startswith(f"{other}.") for other in lists)}


def _found(layers: Sequence[str], parts: Sequence[ImagePart | None]) -> tuple[ImagePart, ...]:
    for layer, part in zip(layers, parts, strict=True):
        if part is None:
            raise UserError(
                f"discriminator.layers names {layer!r}, which returns nothing of the image, or it in pieces: name a "
                "block that the image passes through as a whole, or leave discriminator.layers out"
            )
    return tuple(part for part in parts if part is not None)


def _head_for(feature: Tensor) -> nn.Module:
    if feature.ndim == 4:
        return MapHead(feature.shape[1], min(feature.shape[-2:]))
    if feature.ndim == 5:
        return VideoHead(feature.shape[1], min(feature.shape[-2:]))
    return TokenHead(feature.shape[-1])


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 32), channels)


def zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """The layer with weights and bias of 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
