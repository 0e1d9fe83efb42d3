"""Two networks that share the times between them, as one (Wan 2.2's experts of high and of low noise)."""

from typing import Any

import torch
from torch import Tensor, nn


class Experts(nn.Module):
    """Called as one network: rows at timesteps >= `boundary` are told to `high`, the others to `low`.

    A batch on one side of the boundary is one call of one network; otherwise each gets its rows. How many there are on
    each side decides the shapes of what is computed, so that the host has to know it: a call waits for the device once.

    Args:
        high, low: networks of one form, whose call takes `timestep` [B].
        boundary: network timestep between them.
    """

    def __init__(self, high: nn.Module, low: nn.Module, *, boundary: float) -> None:
        super().__init__()
        self.high, self.low, self.boundary = high, low, boundary
        self.rows: Tensor | slice = slice(None)
        """The rows of the batch that the network now called was given."""

    @property
    def config(self) -> Any:
        return self.high.config

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.high.dtype  # type: ignore[assignment]
        return dtype

    @property
    def _keep_in_fp32_modules(self) -> Any:
        return getattr(self.high, "_keep_in_fp32_modules", None)

    def enable_gradient_checkpointing(self, **settings: Any) -> None:
        """Has both networks compute blocks again in `backward`, as the method of Diffusers' networks does."""
        self.high.enable_gradient_checkpointing(**settings)  # type: ignore[operator]
        self.low.enable_gradient_checkpointing(**settings)  # type: ignore[operator]

    def forward(self, *, timestep: Tensor, **told: Any) -> tuple[Tensor]:
        """The output [B, ...]; of what is told, tensors of B rows are told by row and all else to both."""
        below, count, outputs = timestep < self.boundary, len(timestep), []
        order, split = below.to(torch.uint8).argsort(stable=True), count - int(below.sum())
        for net, rows in ((self.high, order[:split]), (self.low, order[split:])):
            if len(rows):
                self.rows = rows if len(rows) < count else slice(None)
                given = {name: self._given(value, count) for name, value in told.items()}
                outputs.append(net(timestep=timestep[self.rows], **given, return_dict=False)[0])
        self.rows = slice(None)
        return (torch.cat(outputs)[order.argsort()],)

    def _given(self, value: Any, count: int) -> Any:
        by_row = isinstance(value, Tensor) and value.ndim and len(value) == count
        return value[self.rows] if by_row else value


def networks_in(net: nn.Module) -> dict[str, nn.Module]:
    """The networks that a network is made of, by what their names begin with in it: itself, or two."""
    return {"high.": net.high, "low.": net.low} if isinstance(net, Experts) else {"": net}
