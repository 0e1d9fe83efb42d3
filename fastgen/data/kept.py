"""What is found out about files once and kept between runs, as an array of whole numbers."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..files import atomic_file, cache_folder


def kept_array(kind: str, files: Sequence[Path], make: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """What `make` found out about the files as they are now (names, sizes and times), by memory map.

    Args:
        kind: of what is found out.
        files: all that it depends on.
        make: finds it out.
    """
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    place = cache_folder() / kind / f"{digest.hexdigest()[:32]}.npy"
    if place.is_file():
        try:
            return _mapped(place)
        except (OSError, ValueError, EOFError):  # damaged: made again below
            pass
    made = make()
    with atomic_file(place) as temporary, temporary.open("xb") as out:
        np.save(out, made)
    return _mapped(place)


def _mapped(place: Path) -> NDArray[np.int64]:
    """What is kept there, read by memory map; of nothing, which cannot be mapped, as it is."""
    found: NDArray[np.int64] = np.load(place, allow_pickle=False, mmap_mode="r")
    return found
