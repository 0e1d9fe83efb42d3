"""Exponential moving average of the generator, kept in fp32."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """avg <- decay avg + (1 - decay) parameter, once per generator update.

    Early on the decay is at most (1 + n) / (10 + n) after n updates, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._module = module
        self.averages = {name: p.detach().float().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = [p.detach().float() for p in self._module.parameters()]
        torch._foreach_lerp_(list(self.averages.values()), parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module has the averaged weights."""
        live = {name: p.detach().clone() for name, p in self._module.named_parameters()}
        self._write(self.averages)
        try:
            yield
        finally:
            self._write(live)

    def load(self, averages: Mapping[str, Tensor], *, updates: int) -> None:
        """Puts back what a checkpoint holds."""
        for name, average in self.averages.items():
            average.copy_(averages[name])
        self.updates = updates

    @torch.no_grad()
    def _write(self, values: dict[str, Tensor]) -> None:
        for name, p in self._module.named_parameters():
            p.copy_(values[name])
