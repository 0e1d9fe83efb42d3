"""Random streams as a function of the seed and the position in the run: nothing to save, nothing to drift.

What is drawn for a sample depends on its place in the batch alone, not on how the batch is split into micro-batches
and over processes; see `RowStream`. A resumed run draws what it would have drawn, on however many processes.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

VALUES, MOST = 2**16, 2**12  # of a draw at once, and rows of it


class RowStream(torch.Generator):
    """The stream of some rows of a batch: each row has the values that it would have in the whole batch.

    `uniform`, `normal` and `integers` below draw so, values of a few rows at once, which all that have
    some of these rows draw alike. As a generator of its own for PyTorch's functions it is a stream of these rows alone.

    Args:
        device: where values are drawn.
        position: of the batch in the run.
        first: the batch's row that is the first here.
        count: number of rows.

    Attributes:
        first: likewise.
    """

    def __new__(cls, device: torch.device, *position: int | str, first: int, count: int) -> "RowStream":
        return super().__new__(cls, device)  # type: ignore[call-arg]

    def __init__(self, device: torch.device, *position: int | str, first: int, count: int) -> None:
        self._position, self.first, self._count = position, first, count
        self._draws = 0
        self._some = torch.Generator(device)
        self.manual_seed(seed_of(*position, first))

    def filled(self, values: Tensor, fill: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        """Values [rows, ...] of the next draw.

        Args:
            values: empty, to be filled.
            fill: fills a tensor from a generator.
        """
        if len(values) != self._count:
            return fill(values, self)
        self._draws += 1
        grain = max(1, min(MOST, VALUES // max(1, values[0].numel())))
        last = self.first + self._count
        for number in range(self.first // grain, -(-last // grain)):
            start = number * grain
            low, high = max(start, self.first), min(start + grain, last)
            part, rng = values[low - self.first : high - self.first], self._of(grain, number)
            if len(part) == grain:
                fill(part, rng)
            else:
                part.copy_(fill(values.new_empty((grain, *values.shape[1:])), rng)[low - start : high - start])
        return values

    def _of(self, grain: int, number: int) -> torch.Generator:
        return self._some.manual_seed(seed_of(*self._position, self._draws, grain, number))


def uniform(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values in [0, 1) for each row, on the device of `rng`."""
    return _drawn(rng, shape, dtype, lambda x, g: x.uniform_(generator=g))


def normal(rng: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of unit variance for each row, on the device of `rng`."""
    return _drawn(rng, shape, dtype, lambda x, g: x.normal_(generator=g))


def integers(rng: torch.Generator, below: int, *shape: int) -> Tensor:
    """Numbers 0 .. below - 1 for each row, on the device of `rng`."""
    return _drawn(rng, shape, torch.int64, lambda x, g: x.random_(below, generator=g))


def places(rng: torch.Generator, count: int) -> Tensor:
    """Numbers of so many rows in the whole batch, on the host; from 0 on where the generator is no batch's."""
    first = rng.first if isinstance(rng, RowStream) else 0
    return torch.arange(first, first + count)


def stream(device: torch.device, *position: int | str) -> torch.Generator:
    """The generator of a position, on a device."""
    return torch.Generator(device).manual_seed(seed_of(*position))


def seed_of(*position: int | str) -> int:
    """63 bits that depend on every part of the position: what any generator takes as its seed."""
    return hash_of(*position) >> 1


def hash_of(*position: int | str) -> int:
    """64 bits that depend on every part of the position, equal on every machine, in every process and version."""
    return int.from_bytes(hashlib.blake2b(repr(position).encode(), digest_size=8).digest(), "little")


def _drawn(
    rng: torch.Generator,
    shape: Sequence[int],
    dtype: torch.dtype,
    fill: Callable[[Tensor, torch.Generator], Tensor],
) -> Tensor:
    values = torch.empty(shape, dtype=dtype, device=rng.device)
    return rng.filled(values, fill) if isinstance(rng, RowStream) else fill(values, rng)
