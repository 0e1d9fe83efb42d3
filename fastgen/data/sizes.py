"""Height and width of every image of a set, read from their headers once and kept between runs."""

import hashlib
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
from ..files import cache_folder
from .decode import Size, size_of
from .pixels import THREADS

UNKNOWN = (1, 1)  # of an image that cannot be read, and is skipped when it is asked for


class _Encoded(Protocol):
    """Encoded images by their numbers, see `images.Records`."""

    def __len__(self) -> int: ...

    @property
    def files(self) -> Sequence[Path]: ...

    def encoded(self, number: int) -> Path | BytesIO: ...

    def named(self, number: int) -> str: ...


def sizes_of(records: _Encoded) -> NDArray[np.int64]:
    """Heights and widths [n, 2] as images are seen (EXIF); of those that cannot be read, a square's.

    They are read once: the folder of what is kept between runs has them by the files' names, sizes and times.
    """
    kept = cache_folder() / "sizes" / f"{_identity(records)}.npy"
    if kept.is_file():
        try:
            found = np.load(kept, allow_pickle=False)
            if found.shape == (len(records), 2):
                return found.astype(np.int64)
        except (OSError, ValueError):  # a damaged one is made again
            pass
    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1), "fastgen-sizes") as threads:
        read = threads.map(lambda number: _size(records, number), range(len(records)))
        told = tqdm(read, desc="sizes of images", total=len(records), leave=False, disable=len(records) < 10_000)
        sizes = np.array(list(told), np.int32).reshape(-1, 2)
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(f".{os.getpid()}.npy")
    np.save(temporary, sizes)
    os.replace(temporary, kept)
    return sizes.astype(np.int64)


def _size(records: _Encoded, number: int) -> Size:
    try:
        return size_of(records.encoded(number), records.named(number))
    except UserError:
        return UNKNOWN


def _identity(records: _Encoded) -> str:
    digest = hashlib.sha256(f"{len(records)}\n".encode())
    for file in records.files:
        state = file.stat()
        digest.update(f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]
