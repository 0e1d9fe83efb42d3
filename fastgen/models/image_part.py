"""Which part of what a layer returns is the image's: blocks return text beside it, or one sequence of both.

It is measured, not known by name. Where no token attends to another, what the image moves is the image's, and text,
registers and padding stand still.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..process import Latent, Time
from .conditioning import Conditioning
from .contract import Denoiser
from .layout import flat

Example = tuple[Latent, Time, Conditioning]
"""An input of a denoiser; rows that ask for texts of different length show where each row's image begins."""

_STILL = 1e-4  # share of the largest change below which a token is not the image's
_ATTENTION = nn.functional.scaled_dot_product_attention


@dataclass(frozen=True)
class ImagePart:
    """The image's part of a layer's output.

    Args:
        stream: which of the values that the layer returns, from 0.
        tokens: the image's tokens in [B, N, D], counted from the end that it lies at; None where all are the image's.
        behind: the argument with the mask [B, M] of the text that each row's image comes right after, where rows
            differ in that; `tokens` then counts from there.
    """

    stream: int
    tokens: slice | None = None
    behind: str | None = None

    def of(self, output: Any, cond: Conditioning) -> Tensor:
        """The image's part, in float32, of what the layer returned in a call under `cond`."""
        stream: Tensor = _values(output)[self.stream].float()
        if self.behind is not None:
            assert self.tokens is not None
            starts = flat(cond.kwargs)[self.behind].sum(1).long()
            places = starts[:, None] + torch.arange(self.tokens.stop, device=stream.device)
            return stream[torch.arange(len(stream), device=stream.device)[:, None], places]
        return stream if self.tokens is None else stream[:, self.tokens]


def image_parts(backbone: Denoiser, layers: Sequence[str], example: Example) -> list[ImagePart | None]:
    """The image's part of each layer's output; None where there is none, or not in one piece."""
    x_t, t, cond = example
    noise = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0)).to(x_t)
    with torch.no_grad(), _Unattending():
        before, after = (backbone.tap(x, t, cond, layers) for x in (x_t, x_t + noise))
    return [_part(*outputs, cond) for outputs in zip(before, after, strict=True)]


class _Unattending(TorchFunctionMode):
    """Within, attention gives every token its own query back."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        return (args[0] if args else told["query"]) if func is _ATTENTION else func(*args, **told)


def _part(before: Any, after: Any, cond: Conditioning) -> ImagePart | None:
    for index, (still, moved) in enumerate(zip(_values(before), _values(after), strict=True)):
        if not isinstance(still, Tensor) or torch.equal(still, moved):
            continue
        if still.ndim != 3 or still.is_meta:  # meta tensors do not show what stands still
            return ImagePart(index)
        change = (moved.float() - still.float()).abs().amax(dim=2)
        return _tokens(index, change > _STILL * change.max(), cond)
    return None


def _tokens(stream: int, moved: Tensor, cond: Conditioning) -> ImagePart | None:
    """The run of tokens that `moved` [B, N] marks in every row."""
    count, length = int(moved[0].sum()), moved.shape[1]
    starts = moved.int().argmax(dim=1)
    places = torch.arange(length, device=moved.device) - starts[:, None]
    if not torch.equal(moved, (places >= 0) & (places < count)):
        return None
    if count == length:
        return ImagePart(stream)
    if not starts.any():
        return ImagePart(stream, slice(0, count))
    if (starts == length - count).all():
        return ImagePart(stream, slice(-count, None))
    behind = next((name for name, mask in flat(cond.kwargs).items() if _ends_at(mask, starts)), None)
    return None if behind is None else ImagePart(stream, slice(0, count), behind)


def _ends_at(mask: Any, starts: Tensor) -> bool:
    is_mask = isinstance(mask, Tensor) and mask.shape[:1] == starts.shape and mask.ndim == 2
    return is_mask and torch.equal(mask.sum(1).to(starts), starts)


def _values(output: Any) -> list[Any]:
    if isinstance(output, Mapping):  # Diffusers' outputs by name
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else [output]
