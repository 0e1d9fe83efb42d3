"""Parts of a pipeline that are on the device only while they are used, and in main memory otherwise."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from .codec import Codec
from .components import autoencoder_of, network_of
from .stock_pipeline import StockPipeline


class Sleepers:
    """Parts that can be woken together; waking nests.

    Args:
        parts: networks in main memory, or on their way there: they are moved there after they were awake.
        device: where they are awake.
    """

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        self.parts, self.device = list(parts), device
        self._depth = 0

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within, the parts are on the device."""
        self._depth += 1
        for part in self.parts:
            part.to(self.device)
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                for part in self.parts:
                    part.to("cpu")

    def rise(self) -> None:
        """Wakes the parts for good."""
        self._depth += 1
        for part in self.parts:
            part.to(self.device)


def awake(sleepers: Sleepers | None) -> AbstractContextManager[None]:
    """Within, the parts are awake, if there are any."""
    return nullcontext() if sleepers is None else sleepers.awake()


class SleepingCodec:
    """A codec whose autoencoder sleeps between calls; once a graph leads through it, it stays awake."""

    def __init__(self, codec: Codec, autoencoder: Sleepers) -> None:
        self._codec, self._autoencoder = codec, autoencoder

    @property
    def identity(self) -> str:
        return self._codec.identity

    def encode(self, images: Tensor) -> Tensor:
        with self._autoencoder.awake():
            return self._codec.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        with self._autoencoder.awake():
            return self._codec.decode(x0)

    def images_of(self, x0: Tensor) -> Tensor:
        if x0.requires_grad:
            self._autoencoder.rise()
        with self._autoencoder.awake():
            return self._codec.images_of(x0)


def sleeping_autoencoder(pipe: StockPipeline) -> Sleepers:
    """The pipeline's autoencoder, if it has one, which sleeps from its first use on."""
    vae = autoencoder_of(pipe)
    return Sleepers([] if vae is None else [vae], next(network_of(pipe).parameters()).device)
