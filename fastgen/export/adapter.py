"""A trained adapter, whatever file it will be written to."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from peft import LoraConfig
from torch import Tensor

from ..models.low_rank import DOWN_KEY, UP_KEY


@dataclass(frozen=True)
class Adapter:
    """One trained adapter.

    Args:
        weights: layer name + `DOWN_KEY` -> A [rank, in, ...], layer name + `UP_KEY` -> B [out, rank, ...].
        config: peft's config that it was made by; says the alpha of every layer.
    """

    weights: Mapping[str, Tensor]
    config: LoraConfig

    @property
    def layers(self) -> list[str]:
        """The names of the layers that it changes."""
        return [key.removesuffix(DOWN_KEY) for key in self.weights if key.endswith(DOWN_KEY)]

    def within(self, start: str) -> "Adapter":
        """The part in the layers whose names begin so, without that beginning."""
        if not start:
            return self
        weights = {key.removeprefix(start): w for key, w in self.weights.items() if key.startswith(start)}
        part = Adapter(weights, self.config)
        return replace(part, config=replace(self.config, target_modules=sorted(part.layers)))

    def alpha(self, layer: str) -> float:
        """Alpha of a layer: its update is alpha / rank times B A."""
        known = self.config.alpha_pattern or {}
        own = (value for name, value in known.items() if re.fullmatch(rf"(.*\.)?({name})", layer))
        return float(next(own, self.config.lora_alpha))

    def plain(self) -> "Adapter":
        """The same updates, each B A as it stands: one rank for all layers, and alpha is that rank.

        A reader that knows no alpha, or reads another default for it, cannot be wrong about such a file.
        """
        rank = max(len(self.weights[layer + DOWN_KEY]) for layer in self.layers)
        weights: dict[str, Tensor] = {}
        for layer in self.layers:
            down, up = (self.weights[layer + end].detach().cpu() for end in (DOWN_KEY, UP_KEY))
            weights[layer + DOWN_KEY] = _filled(down, 0, rank)
            weights[layer + UP_KEY] = _filled(up * (self.alpha(layer) / len(down)), 1, rank)
        return Adapter(weights, LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(self.layers)))


def _filled(factor: Tensor, dim: int, rank: int) -> Tensor:
    """The factor with zeros behind, so that its inner dimension is `rank`."""
    missing = list(factor.shape)
    missing[dim] = rank - factor.shape[dim]
    return torch.cat([factor, factor.new_zeros(missing)], dim).contiguous()
