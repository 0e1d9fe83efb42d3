"""Shapes of about the same number of pixels, and which of them an image is trained in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .decode import Size


@dataclass(frozen=True)
class Buckets:
    """Images are trained in the shape that is nearest to their own, among shapes of about the pixels of `size`.

    Args:
        step: sides are multiples of it.
        ratio: largest ratio of a shape's sides.
    """

    step: int = 64
    ratio: float = 2.0

    def check(self, size: Size) -> None:
        """Raises UserError for shapes that there cannot be."""
        if not 1 <= self.step <= min(size):
            raise UserError(
                f"buckets.step is {self.step}, but sides of about {min(size)} pixels are to be multiples of it: give 8 "
                "to 64"
            )
        if not 1 <= self.ratio <= 8:
            raise UserError(
                f"buckets.ratio is {self.ratio:g}, but the longest shape has sides of 1 to 8 times: 2 is usual"
            )

    def shapes(self, size: Size) -> tuple[Size, ...]:
        """Height and width of every bucket, the tallest first."""
        area, step = size[0] * size[1], self.step
        found: set[Size] = set()
        for side in range(step, int(area**0.5 * self.ratio**0.5) + 1, step):
            other = max(step, round(area / side / step) * step)
            found |= {(height, width) for height, width in ((side, other), (other, side)) if self._fits(height, width)}
        return tuple(sorted(found, key=lambda shape: (shape[1] / shape[0], shape))) or (size,)

    def _fits(self, height: int, width: int) -> bool:
        return max(height, width) <= self.ratio * min(height, width)


def nearest(sizes: NDArray[np.int64], shapes: Sequence[Size]) -> NDArray[np.int64]:
    """The number of the shape that is nearest in aspect ratio to each image.

    Args:
        sizes: [n, 2] heights and widths.
        shapes: heights and widths to choose from.
    """
    ratios, offered = sizes[:, 1] / sizes[:, 0], np.array([width / height for height, width in shapes])
    order = np.argsort(offered, kind="stable")
    between = np.sqrt(offered[order][1:] * offered[order][:-1])
    return order[np.searchsorted(between, ratios)].astype(np.int64)
