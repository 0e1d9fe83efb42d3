"""The handwritten digits that ship with scikit-learn: 1,797 real images, at hand without a download."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .source import Items, Source

SIDE = 8
CANVAS = 16


def to_canvas(images8: Tensor) -> Tensor:
    """8x8 digits [N, 1, 8, 8] in [0, 1] on the canvas that networks see: [N, 1, 16, 16] in [-1, 1]."""
    return F.interpolate(2 * images8 - 1, size=(CANVAS, CANVAS), mode="bilinear", align_corners=False)


def from_canvas(images16: Tensor) -> Tensor:
    """The digits [N, 64] in [0, 1] whose canvas is nearest to `images16` [N, 1, 16, 16] in [-1, 1].

    Exact on the output of `to_canvas`, a least-squares fit followed by a clip on anything else. Bilinear
    upsampling is separable, hence so is its pseudo-inverse: pinv(A kron A) = pinv(A) kron pinv(A).
    """
    shrink: Tensor = torch.linalg.pinv(_upsampling()).to(images16.device)
    fitted: Tensor = shrink @ ((images16.double() + 1) / 2) @ shrink.T
    return fitted.clamp(0, 1).flatten(1).to(images16.dtype)


def _upsampling() -> Tensor:
    """The matrix A [16, 8] that upsamples one row of pixels."""
    unit_rows = torch.eye(SIDE, dtype=torch.float64)[:, None]
    return F.interpolate(unit_rows, size=CANVAS, mode="linear", align_corners=False)[:, 0].T


@dataclass(frozen=True)
class Digits(Source):
    """scikit-learn's `load_digits` on a 16x16 canvas, one channel, labels 0 .. 9."""

    has_images: ClassVar[bool] = True
    num_classes: ClassVar[int | None] = 10
    prompts: ClassVar[tuple[str, ...] | None] = None

    def check(self) -> None:
        """Nothing can be wrong: there are no settings and the data ships with a dependency."""

    def __len__(self) -> int:
        return len(self._labels)

    def items(self, indices: Sequence[int]) -> Items:
        chosen = torch.as_tensor(indices)
        return Items(images=self._images[chosen], labels=self._labels[chosen])

    @cached_property
    def _images(self) -> Tensor:
        return to_canvas(torch.from_numpy(self._digits.images).float()[:, None] / 16)

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(self._digits.target).long()

    @cached_property
    def _digits(self) -> Any:
        from sklearn.datasets import load_digits  # slow to import, and most runs do not need it

        return load_digits()
