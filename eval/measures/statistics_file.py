"""Feature statistics as .npz files, readable by the FID tools that use the keys `mu` and `sigma`. No pickle."""

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastgen.errors import UserError

from .frechet import Statistics


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
        with np.load(path, allow_pickle=False) as arrays:
            return _validated(path, {name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"the statistics file {path} cannot be read ({error}); it must be an .npz of plain arrays. Recompute "
            "it from the images with --save-stats."
        ) from error


def _validated(path: Path, arrays: dict[str, np.ndarray]) -> Statistics:
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(
            f"the statistics file {path} holds {sorted(arrays)}, but `mu` and `sigma` are needed. Recompute it "
            "from the images with --save-stats."
        )
    mean, cov = (arrays[name].astype(np.float64) for name in ("mu", "sigma"))
    if mean.ndim != 1 or cov.shape != (mean.size, mean.size) or not np.isfinite([mean.sum(), cov.sum()]).all():
        raise UserError(
            f"the statistics file {path} holds mu {mean.shape} and sigma {cov.shape}; finite arrays [d] and [d, d] "
            "are needed. Recompute it from the images with --save-stats."
        )
    return Statistics(
        mean=torch.from_numpy(mean),
        cov=torch.from_numpy(cov),
        count=int(arrays["count"]) if "count" in arrays else None,
        extractor=str(arrays["extractor"]) if "extractor" in arrays else None,
    )
