"""What drawing images costs: network calls and time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

_DENOISERS = ("unet", "transformer", "transformer_2")


@dataclass
class Costs:
    """A ledger of the batches that one pipeline draws."""

    _images: int = 0
    _calls: int = 0  # a call on a batch of n counts n
    _seconds: list[float] = field(default_factory=list)

    @property
    def nfe(self) -> float | None:
        """Denoiser calls per image, a guidance pair counted as 2; None for a denoiser of unknown name."""
        return self._calls / self._images if self._calls else None

    @property
    def seconds_per_image(self) -> float:
        """Median over batches, so that the first one's warm-up does not count."""
        return median(self._seconds)

    @contextmanager
    def counting(self, pipe: DiffusionPipeline) -> Iterator[None]:
        """Counts the denoiser calls of `pipe` inside the block."""
        parts: dict[str, Any] = pipe.components  # type: ignore[attr-defined]
        networks = [parts[name] for name in _DENOISERS if isinstance(parts.get(name), nn.Module)]
        hooks = [network.register_forward_pre_hook(self._count, with_kwargs=True) for network in networks]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def timing(self, batches: Iterator[Tensor]) -> Iterator[Tensor]:
        """Passes batches [B, ...] on, noting what each one took; the consumer's time does not count."""
        began = perf_counter()
        for images in batches:
            self._images += len(images)
            self._seconds.append((perf_counter() - began) / len(images))
            yield images
            began = perf_counter()

    def _count(self, _network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor | list))
        self._calls += len(sample)
