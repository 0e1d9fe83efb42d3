"""Images of a network that lies in no folder yet, drawn by a function."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..rows import Origin, Skipped
from .costs import Costs
from .decode import ImageBatch

Drawing = Callable[[Sequence[int], Sequence[int]], ImageBatch]
"""(seeds, numbers) -> images of what the numbers ask for."""


@dataclass(frozen=True, eq=False, kw_only=True)
class DrawnSource:
    """Image i is drawn from seed i and of what number i asks for.

    Attributes:
        draw: draws a batch.
        asked: numbers of images -> labels or prompts, by these words.
        network: whose calls are counted.
    """

    origin: Origin
    steps: int
    draw: Drawing
    asked: Callable[[Sequence[int]], dict[str, Any]]
    network: nn.Module
    device: torch.device
    batch_size: int
    costs: Costs = field(default_factory=Costs)
    skipped: tuple[Skipped, ...] = ()

    def batches(self, share: range) -> Iterator[ImageBatch]:
        with self.costs.counting([self.network], self.device):
            parts = (share[start : start + self.batch_size] for start in range(0, len(share), self.batch_size))
            yield from self.costs.timing(self.draw(part, part) for part in parts)

    def strip(self, count: int) -> Iterator[ImageBatch]:
        """`count` images of what image 0 asks for, with the seeds 0, 1, 2 ...; costs do not count."""
        yield self.draw(range(count), [0] * count)
