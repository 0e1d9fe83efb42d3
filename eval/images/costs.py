"""What drawing images costs: network calls, time and memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastgen.models.pipelines.stock_pipeline import StockPipeline
from fastgen.sampling.stock import Drawn

from ..rows import Bill
from .decode import ImageBatch

Batch = TypeVar("Batch", Drawn, ImageBatch)
_DENOISERS = ("unet", "transformer", "transformer_2")


def denoisers(pipe: StockPipeline) -> list[nn.Module]:
    """The networks whose calls count."""
    parts = pipe.components
    return [parts[name] for name in _DENOISERS if isinstance(parts.get(name), nn.Module)]


@dataclass
class Costs:
    """A ledger of the batches that one pipeline draws; ledgers of several processes are joined by `bill`."""

    _images: int = 0
    _calls: int = 0  # a call on a batch of n counts n
    _seconds: list[float] = field(default_factory=list)  # per image, one entry per batch
    _peak: int | None = None

    @property
    def last(self) -> float:
        """Seconds per image of the last batch."""
        return self._seconds[-1]

    @property
    def images(self) -> int:
        """Drawn so far."""
        return self._images

    @staticmethod
    def bill(ledgers: "list[Costs]", batch_size: int) -> Bill:
        """What all processes together did; each drew at least one batch."""
        seconds = median([value for ledger in ledgers for value in ledger._seconds])
        images, calls = sum(ledger._images for ledger in ledgers), sum(ledger._calls for ledger in ledgers)
        peaks = [ledger._peak for ledger in ledgers if ledger._peak is not None]
        return Bill(
            nfe=calls / images if calls else None,
            seconds_per_image=seconds,
            images_per_second=len(ledgers) / seconds,
            peak_memory_gib=max(peaks) / 2**30 if peaks else None,
            batch_size=batch_size,
        )

    @contextmanager
    def counting(self, networks: Sequence[nn.Module], device: torch.device) -> Iterator[None]:
        """Counts the calls of denoisers, and the memory of their GPU, inside the block."""
        hooks = [network.register_forward_pre_hook(self._count, with_kwargs=True) for network in networks]
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def timing(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Passes batches on, noting what each one took; the consumer's time does not count."""
        began = perf_counter()
        for batch in batches:
            self._images += len(batch.images)
            self._seconds.append((perf_counter() - began) / len(batch.images))
            self._peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
            yield batch
            began = perf_counter()

    def _count(self, _network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | list))
        self._calls += len(sample)
