"""Exponential moving average of the generator, kept in fp32."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.owned import owned


class EMA:
    """avg <- decay avg + (1 - decay) parameter, once per generator update.

    Early on the decay is at most (1 + n) / (10 + n) after n updates, so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._owned = owned(module)
        self._means = [p.detach().float().clone() for p in self._owned.tensors]
        self.averages = self._owned.named(self._means)

    @torch.no_grad()
    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        parameters = [p.detach().float() for p in self._owned.tensors]
        torch._foreach_lerp_(self._means, parameters, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module has the averaged weights."""
        live = [p.detach().clone() for p in self._owned.tensors]
        self._write(self._means)
        try:
            yield
        finally:
            self._write(live)

    @property
    def sharded(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters, as slices of whole tensors where these are sharded."""
        return self._owned.sharded(self.averages)

    def load(self, averages: Mapping[str, Tensor], *, updates: int) -> None:
        """Puts back what a checkpoint holds."""
        for name, average in self.averages.items():
            average.copy_(self._owned.places[name].cut(averages[name]))
        self.updates = updates

    @torch.no_grad()
    def _write(self, values: Sequence[Tensor]) -> None:
        for p, value in zip(self._owned.tensors, values, strict=True):
            p.copy_(value)
