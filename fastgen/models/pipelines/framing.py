"""Where a denoiser is told of an image's own size and crop, as SDXL's is (micro-conditioning, arXiv:2307.01952, 2.2).

Looked for by asking the pipeline's own call for a size and a crop of numbers that stand nowhere else.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..conditioning import Conditioning
from ..denoiser import CallForm
from ..layout import flat, tree
from .arguments import parameters
from .probe import capture
from .stock_pipeline import StockPipeline

_SIZE, _CROP = "original_size", "crops_coords_top_left"
_ASKED = ((211, 223), (59, 61))  # which bfloat16 has exactly


@dataclass(frozen=True)
class Framing:
    """The places of an image's height and width and of its crop's top and left in what a denoiser is told.

    Args:
        path: of the argument, whose rows are vectors.
        places: four places in such a row.
    """

    path: str
    places: tuple[int, ...]

    def told(self, cond: Conditioning, frames: Tensor) -> Conditioning:
        """The same rows, and their null twins, told of these frames [B, 4]."""
        leaves = flat(cond.batched)
        leaf = leaves[self.path].clone()
        leaf[:, list(self.places)] = frames.to(leaf)
        null = None if cond.null is None else self.told(cond.null, frames)
        return replace(cond, batched=tree({**leaves, self.path: leaf}), null=null)


def framing_of(pipe: StockPipeline, form: CallForm, call: Mapping[str, Any]) -> Framing | None:
    """Where the pipeline's denoiser is told of a size and a crop; None where it is told of neither.

    Args:
        call: the call's own arguments for two samples.
    """
    if not {_SIZE, _CROP} <= parameters(pipe).keys():
        return None
    told = capture(pipe, form, {**call, _SIZE: _ASKED[0], _CROP: _ASKED[1]}, rows=2)
    for path, leaf in flat(told.batched).items():
        if isinstance(leaf, Tensor) and leaf.ndim == 2:
            places = [torch.nonzero(leaf[0] == number).flatten().tolist() for pair in _ASKED for number in pair]
            if all(len(found) == 1 for found in places):
                return Framing(path, tuple(found[0] for found in places))
    return None
