"""Exponential moving average of the generator, kept in fp32."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..models.masters import assign, gathered, in_buckets, values_of
from ..models.owned import owned
from .fitting import check_tensors


class EMA:
    """avg <- decay avg + (1 - decay) parameter, once per generator update.

    Early on the decay is at most (1 + n) / (10 + n) after n updates, so that the start is forgotten.

    Args:
        module: what is averaged.
        decay: share of the average that stays.
        aside: the average is in main memory, and follows in a thread of its own: an update returns at once, and the
            parameters must not change before `settle`.

    Attributes:
        aside: whether it is.
    """

    def __init__(self, module: nn.Module, *, decay: float, aside: bool = False) -> None:
        self.decay = decay
        self.aside = aside
        self._updates = 0
        self._owned = owned(module)
        self._buckets = [*in_buckets([*range(len(self._owned.tensors))], self._owned.tensors.__getitem__)]
        self._means = [torch.empty(0)] * len(self._owned.tensors)
        for bucket in self._buckets:
            for index, value in zip(bucket, self._values(bucket), strict=True):
                self._means[index] = value.detach().to("cpu" if aside else value.device, torch.float32, copy=True)
        self._averages = self._owned.named(self._means)
        self._thread = _Thread(self._owned.tensors[0].device) if aside else None

    @property
    def averages(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters."""
        self.settle()
        return self._averages

    @property
    def updates(self) -> int:
        """How many updates the average has followed."""
        self.settle()
        return self._updates

    def update(self, *, blocked: Tensor | None = None) -> None:
        """Lets the average follow the parameters as they are now.

        Args:
            blocked: flag on the device; where it is 1, neither the average nor the count of updates changes. Reading
                it waits for the device: in the average's own thread if that is `aside`, otherwise on the host.
        """
        count = self.updates + 1
        weight = 1 - min(self.decay, (1 + count) / (10 + count))
        if self._thread is None:
            self._updates += self._follow(weight, blocked)
        else:
            self._thread.begin(lambda: self._follow(weight, blocked))

    def settle(self) -> None:
        """Waits for an update that is under way."""
        if self._thread is not None:
            self._updates += self._thread.settle()

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module has the averaged weights."""
        self.settle()
        place = self._means[0].device
        kept = [[value.detach().to(place, copy=True) for value in self._values(one)] for one in self._buckets]
        self._write([[self._means[index] for index in bucket] for bucket in self._buckets])
        try:
            yield
        finally:
            self._write(kept)

    @property
    def sharded(self) -> dict[str, Tensor]:
        """The averages by the names of the parameters, as slices of whole tensors where these are sharded."""
        return self._owned.sharded(self.averages)

    def load(self, averages: Mapping[str, Tensor], *, updates: int) -> None:
        """Puts back what a checkpoint holds.

        Raises:
            CheckpointError: it is the average of another network.
        """
        places = self._owned.places.items()
        wanted = {name: torch.empty(place.whole, dtype=torch.float32, device="meta") for name, place in places}
        check_tensors(wanted, averages, what="average of the generator (ema)")
        for name, average in self.averages.items():
            average.copy_(self._owned.places[name].cut(averages[name]))
        self._updates = updates

    @torch.no_grad()
    def _follow(self, weight: float, blocked: Tensor | None) -> bool:
        """Whether it did."""
        if blocked is not None and blocked.item():
            return False
        values: Iterable[list[Tensor]] = ([value.float() for value in self._values(one)] for one in self._buckets)
        if self._thread is not None:
            values = self._thread.brought(values)
        for bucket, now in zip(self._buckets, values, strict=True):
            torch._foreach_lerp_([self._means[index] for index in bucket], now, weight)
        return True

    def _values(self, bucket: Sequence[int]) -> list[Tensor]:
        return values_of([self._owned.tensors[index] for index in bucket])

    @torch.no_grad()
    def _write(self, buckets: Sequence[Sequence[Tensor]]) -> None:
        for bucket, values in zip(self._buckets, buckets, strict=True):
            assign([self._owned.tensors[index] for index in bucket], values)


class _Thread:
    """Work on a device's tensors that goes on while the device does other work, one piece at a time."""

    def __init__(self, device: torch.device) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._work: Future[bool] | None = None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned = [torch.empty(0), torch.empty(0)]

    def begin(self, work: Callable[[], bool]) -> None:
        """Starts some, after what the device has been told so far."""
        told = None if self._stream is None else torch.cuda.current_stream(self._stream.device).record_event()

        def after() -> bool:
            if self._stream is None or told is None:
                return work()
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(told)
                return work()

        self._work = self._pool.submit(after)

    def settle(self) -> bool:
        """Waits until it is done; what it returned, or False where there was none."""
        work, self._work = self._work, None
        return work is not None and work.result()

    def brought(self, told: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
        """Yields float32 values in main memory, valid until the next ones, which are copied meanwhile."""
        if self._stream is None:
            yield from told
            return
        coming: tuple[list[Tensor], torch.cuda.Event] | None = None
        for number, values in enumerate(told):
            following = self._sent(values, number % 2), self._stream.record_event()
            if coming is not None:
                coming[1].synchronize()
                yield coming[0]
            coming = following
        if coming is not None:
            coming[1].synchronize()
            yield coming[0]

    def _sent(self, values: Sequence[Tensor], place: int) -> list[Tensor]:
        """Starts to copy values to pinned memory; they are there once the stream's copies so far are done."""
        flat, _ = gathered(values, torch.float32)
        if len(self._pinned[place]) < len(flat):
            self._pinned[place] = torch.empty(len(flat), pin_memory=True)
        pinned = self._pinned[place][: len(flat)].copy_(flat, non_blocking=True)
        parts = torch.split(pinned, [value.numel() for value in values])
        return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
