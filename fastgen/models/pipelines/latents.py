"""Samples of images, encoded once and kept on disk by their numbers in the data."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..conditioning import Conditioning
from .codec import Codec
from .identity import digest_of
from .store import Store, bytes_of

Image = tuple[int, bool]
"""An image's number in the data, and whether it is mirrored."""
FOLDER, _X0 = "latents", "x0"


class Latents:
    """What a codec makes of the images of one shape.

    Args:
        folder: of the cache.
        codec: of samples of that shape.
        data: what the images are: settings that decide over their pixels, hashes of what their files hold.
    """

    def __init__(self, folder: Path, codec: Codec, data: Mapping[str, object]) -> None:
        identity = digest_of([codec.identity, dict(data)], {}).hexdigest()
        self._store = Store(folder / FOLDER / identity)

    @property
    def empty(self) -> bool:
        """Whether none is kept."""
        return self._store.empty

    def missing(self, images: Sequence[Image]) -> NDArray[np.int64]:
        """The places of those that are not kept yet, of equal ones the first."""
        return self._store.missing(images)

    def rows(self, images: Sequence[Image]) -> Tensor | None:
        """The kept samples [B, ...] of images, float32 on the CPU; None where one is not kept, or is damaged."""
        found = [self._store.row(image) for image in images]
        rows = [row.batched[_X0] for row in found if row is not None]
        if len(rows) == len(found):
            return torch.cat(rows)
        return None

    def keep(self, samples: Iterable[tuple[Image, Tensor]], *, total: int) -> None:
        """Writes samples [...] of images.

        Args:
            total: how many are to be written by all processes, for whose room is asked before the first.

        Raises:
            UserError: the disk has no room for all of them.
        """
        self._store.keep(self._packed(samples, total))

    def _packed(self, samples: Iterable[tuple[Image, Tensor]], total: int) -> Iterable[tuple[Image, Conditioning]]:
        for place, (image, x0) in enumerate(samples):
            row = Conditioning(1, {_X0: x0[None]})
            if not place:
                self._store.check_space(bytes_of(row) * total, "the samples of this run's images")
            yield image, row

    def refresh(self) -> None:
        """Finds what other processes have written."""
        self._store.refresh()
