"""Height and width of every image of a set, read from their headers once and kept between runs."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import UserError
from .decode import Size, size_of
from .kept import kept_array
from .pixels import THREADS

UNKNOWN = (1, 1)  # the size of an unreadable image, which is skipped when asked for


class _Encoded(Protocol):
    """Encoded images by their numbers, see `images.Records`."""

    def __len__(self) -> int: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def encoded(self, number: int) -> Path | BytesIO: ...

    def named(self, number: int) -> str: ...


def sizes_of(records: _Encoded) -> NDArray[np.int64]:
    """Heights and widths [n, 2] as images are seen (EXIF); of those that cannot be read, a square's.

    They are read once: the folder of what is kept between runs has them by the files' names, sizes and times. Of images
    that are known without their files they are known as well.
    """
    known: NDArray[np.int64] | None = getattr(records, "sizes", None)
    return known if known is not None else kept_array("sizes", records.files, lambda: _read(records))


def _read(records: _Encoded) -> NDArray[np.int64]:
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "fastgen-sizes") as threads:
        read = threads.map(lambda number: _size(records, number), range(len(records)))
        told = tqdm(read, desc="sizes of images", total=len(records), leave=False, disable=len(records) < 10_000)
        return np.array(list(told), np.int64).reshape(-1, 2)


def _size(records: _Encoded, number: int) -> Size:
    try:
        return size_of(records.encoded(number), records.named(number))
    except UserError:
        return UNKNOWN
