"""Moments of an optimizer in eight bits a value, with a scale for each block of 256 values (arXiv:2110.02861).

A code stands for a level between zero and the largest value of its block; levels lie evenly in the logarithm. A moment
moves by less than the distance of two levels in most updates, so that rounding to the nearest would stand still: it is
rounded up or down by chance, with the right mean. A second moment is never zero in a block that has another (the
update would leap, arXiv:2309.01507): its least level is 2^-24 of the block's largest value.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

BLOCK = 256
LEAST = 4096
"""Values of a tensor from which on its moments are kept so; smaller ones, such as norms and biases, stay in float32."""

CODES, SCALES = "_codes", "_scales"
"""What the names of a moment's two tensors end with."""

SECOND = torch.exp2(24 * (torch.arange(256) / 255 - 1))
_POSITIVE = torch.exp2(16 * (torch.arange(128) / 127 - 1))
FIRST = torch.cat([-_POSITIVE[1:].flip(0), torch.zeros(1), _POSITIVE])
LEVELS = {"exp_avg": FIRST, "exp_avg_sq": SECOND}
"""The 256 levels of each moment, in ascending order, as shares of the largest value of a block."""


def blocks_of(count: int) -> int:
    """How many blocks so many values have."""
    return -(-count // BLOCK)


class Blocks:
    """One moment of several tensors.

    Args:
        name: the moment, in `LEVELS`.
        states: of each tensor; the codes have its shape.
    """

    def __init__(self, name: str, states: Sequence[dict[str, Tensor]]) -> None:
        self._codes = [state[name + CODES] for state in states]
        self._scales = [state[name + SCALES] for state in states]
        self._levels = levels_on(name, self._codes[0].device)
        self._values = self._read()
        self.values = self._parts(self._values)
        """In float32, one tensor each; what is written to them is kept by `keep`."""

    def keep(self, rng: torch.Generator | None, *, blocked: Tensor | None = None) -> None:
        """Rounds the values back to codes; where `blocked` is 1, what was there stays."""
        scales = self._values.abs().amax(dim=1)
        codes = self._rounded(self._values / scales.clamp_min(torch.finfo().tiny)[:, None], rng)
        if blocked is not None:
            codes = torch.where(blocked.bool(), self._flat(self._codes), codes)
            scales = torch.where(blocked.bool(), torch.cat(self._scales), scales)
        torch._foreach_copy_(self._codes, self._parts(codes))
        torch._foreach_copy_(self._scales, [*torch.split(scales, [len(scale) for scale in self._scales])])

    def _read(self) -> Tensor:
        codes = self._flat(self._codes)
        values = torch.index_select(self._levels, 0, codes.flatten().int()).view(codes.shape)
        for run, of in zip(self._runs(values), self._codes, strict=True):
            run.view(-1)[of.numel() :].zero_()  # its code is a level as well
        return values.mul_(torch.cat(self._scales)[:, None])

    def _rounded(self, shares: Tensor, rng: torch.Generator | None) -> Tensor:
        below = torch.bucketize(shares, self._levels, out_int32=True, right=True).sub_(1).clamp_(0, 254)
        low, high = (self._levels.index_select(0, (below + i).flatten()).view(shares.shape) for i in (0, 1))
        chance = torch.rand(shares.shape, generator=rng, device=shares.device)
        return (below + (chance < (shares - low) / (high - low))).to(torch.uint8)

    def _flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """[blocks, 256], each tensor from the beginning of a block on."""
        flat = tensors[0].new_zeros(sum(map(len, self._scales)), BLOCK)
        torch._foreach_copy_(self._parts(flat), [*tensors])
        return flat

    def _parts(self, flat: Tensor) -> list[Tensor]:
        pairs = zip(self._runs(flat), self._codes, strict=True)
        return [run.view(-1)[: codes.numel()].view(codes.shape) for run, codes in pairs]

    def _runs(self, flat: Tensor) -> list[Tensor]:
        """The blocks of each tensor."""
        return [*torch.split(flat, [len(scale) for scale in self._scales])]


def start(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """A moment of a tensor before its first update: zero."""
    codes = torch.zeros_like(tensor, dtype=torch.uint8, memory_format=torch.contiguous_format)
    scales = torch.zeros(blocks_of(tensor.numel()), device=tensor.device)
    return {name + CODES: codes, name + SCALES: scales}


@cache
def levels_on(name: str, device: torch.device) -> Tensor:
    """The levels of a moment on a device, to which they are sent once: a copy from main memory would be waited for."""
    return LEVELS[name].to(device)
