"""A network that computes with what is in its blocks outside of them too, as Diffusers' DiT does."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Reaching(nn.Module):
    """Three blocks of two layers each behind a layer of its own: nine linear layers in a call.

    Args:
        width: of all layers.
        called: calls a block.
    """

    def __init__(self, width: int = 4, called: Callable[..., Any] = lambda block, x: block(x)) -> None:
        super().__init__()
        self.called = called
        self.first = nn.Linear(width, width)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[1][0](self.first(x))
        for block in self.blocks:
            x = self.called(block, x.tanh())
        return x + self.blocks[0][1](x)
