"""What a conditioning asks for, as one vector of each row, for a network that is no denoiser."""

from typing import Any

import torch
from torch import Tensor, nn

from .conditioning import Conditioning
from .layout import flat

LABELS = 1024
"""Classes that are told apart; those beyond share the embeddings of others."""


class ConditionEmbedding(nn.Module):
    """(cond) -> vectors [B, width]: of classes by an embedding, of each sequence of tokens by a projection of its mean.

    The mean is normalised, so that zeros behind a text do not change it; all other arguments are left aside.

    Args:
        example: a conditioning, which shows what there is to be read.
        width: of the vectors.
    """

    def __init__(self, example: Conditioning, width: int) -> None:
        super().__init__()
        self.width = width
        leaves = {name: _read(leaf) for name, leaf in sorted(flat(example.batched).items())}
        self._names = tuple(name for name, leaf in leaves.items() if leaf is not None)
        self.parts = nn.ModuleList(_part(leaf, width) for leaf in leaves.values() if leaf is not None)

    @property
    def says_something(self) -> bool:
        """Whether a conditioning like the example has anything that is read."""
        return bool(self._names)

    def forward(self, cond: Conditioning) -> Tensor:
        leaves = flat(cond.batched)
        vectors = [part(_read(leaves[name])) for name, part in zip(self._names, self.parts, strict=True)]
        return torch.stack(vectors).sum(dim=0)


def _part(leaf: Tensor, width: int) -> nn.Module:
    if leaf.ndim == 1:
        return nn.Embedding(LABELS, width)
    return nn.Sequential(nn.LayerNorm(leaf.shape[1], elementwise_affine=False), nn.Linear(leaf.shape[1], width))


def _read(leaf: Any) -> Tensor | None:
    """Labels [B], or means [B, D] of tokens; None of anything else."""
    if isinstance(leaf, list):
        rows = [mean for row in leaf if (mean := _mean(row, 0)) is not None]
        return torch.stack(rows) if len(rows) == len(leaf) else None
    if isinstance(leaf, Tensor) and leaf.ndim == 1 and not leaf.is_floating_point():
        return leaf % LABELS
    return _mean(leaf, 1)


def _mean(tokens: Any, axis: int) -> Tensor | None:
    """Over the tokens, which lie along that axis before the last."""
    is_sequence = isinstance(tokens, Tensor) and tokens.is_floating_point() and tokens.ndim == axis + 2
    return tokens.float().mean(dim=axis) if is_sequence else None
