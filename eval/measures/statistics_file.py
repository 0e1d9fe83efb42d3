"""Feature statistics as .npz files, readable by the FID tools that use the keys `mu` and `sigma`. No pickle."""

import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgen.disk import named
from fastgen.errors import UserError
from fastgen.limits import Cap, plain

from .frechet import Statistics

KEYS = ("mu", "sigma", "count", "extractor")


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Writes `statistics`; the file is the whole new one or what was there before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"mu": statistics.mean.cpu().numpy(), "sigma": statistics.cov.cpu().numpy()}
    if statistics.count is not None:
        arrays["count"] = np.asarray(statistics.count)
    if statistics.extractor is not None:
        arrays["extractor"] = np.asarray(statistics.extractor)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with named(path):
            with temporary.open("wb") as file:
                np.savez(file, **arrays)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_statistics(path: Path) -> Statistics:
    """Reads a file of `save_statistics`, or a foreign one that holds at least `mu` [d] and `sigma` [d, d].

    Raises:
        UserError: the file is missing, damaged, holds pickled objects or is not a set of statistics.
    """
    if not path.is_file():
        raise UserError(f"the statistics file {path} does not exist; give an .npz file or a set of images")
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in (f"{key}.npy" for key in KEYS) if name in archive.namelist()]
            arrays = {name.removesuffix(".npy"): _array(archive, name) for name in names}
        return _validated(path, arrays)
    except UserError:
        raise
    except Exception as error:  # OSError, BadZipFile, ValueError, zlib.error ... of damaged bytes
        raise UserError(
            f"the statistics file {path} cannot be read ({error}); it must be an .npz of plain arrays. Recompute "
            "it from the images with --save-stats."
        ) from error


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """A member, after its header has told how much memory it takes."""
    member = archive.getinfo(name)
    Cap.ARRAY.check(member.file_size, name)
    with archive.open(member) as file:
        first = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        Cap.ARRAY.check(math.prod(shape) * dtype.itemsize, name)
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _validated(path: Path, arrays: dict[str, np.ndarray]) -> Statistics:
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(
            f"the statistics file {path} holds {sorted(arrays)}, but `mu` and `sigma` are needed. Recompute it "
            "from the images with --save-stats."
        )
    if any(arrays[name].dtype.kind == "c" for name in ("mu", "sigma")):
        raise TypeError("complex numbers")
    mean, cov = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    fits = mean.ndim == 1 and mean.size and cov.shape == (mean.size, mean.size)
    if not fits or not np.isfinite([mean.sum(), cov.sum()]).all():
        raise UserError(
            f"the statistics file {path} holds mu {mean.shape} and sigma {cov.shape}; finite arrays [d] and [d, d] "
            "are needed. Recompute it from the images with --save-stats."
        )
    return Statistics(
        mean=torch.from_numpy(mean),
        cov=torch.from_numpy(cov),
        count=int(arrays["count"]) if "count" in arrays else None,
        extractor=plain(str(arrays["extractor"]), "its extractor's name") if "extractor" in arrays else None,
    )
