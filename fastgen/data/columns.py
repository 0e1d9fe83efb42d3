"""What is read of a row of the library `datasets`."""

from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from ..errors import UserError
from .metadata import CAPTION_NAMES
from .parquet import LABEL_NAMES


@dataclass(frozen=True)
class Columns:
    """What is read of a row, by the names of its columns; None for what it does not have.

    Args:
        classes: how many its labels say there are; None where they do not.
    """

    image: str
    label: str | None
    caption: str | None
    classes: int | None


def columns_of(features: Any, path: str, *, image: str, label: str | None, caption: str | None) -> Columns:
    """The columns of a data set; raises UserError for one that it does not have."""
    for name in (image, *filter(None, (label, caption))):
        if name not in features:
            raise UserError(
                f"the data set {path} has no column {name!r}: name one of {', '.join(features)} with data.image, "
                "data.label or data.caption"
            )
    label = label or next((name for name in LABEL_NAMES if name in features and _is_whole(features[name])), None)
    caption = caption or next((name for name in CAPTION_NAMES if name in features and _is_text(features[name])), None)
    classes = getattr(features[label], "num_classes", None) if label else None
    return Columns(image, label, caption, classes)


def content_of(cell: Any, where: str) -> Path | BytesIO:
    """An encoded image in a row; raises UserError where there is none."""
    held = cell if isinstance(cell, dict) else {"bytes": cell, "path": None}
    if isinstance(held.get("bytes"), bytes):
        return BytesIO(held["bytes"])
    if isinstance(held.get("path"), str) and Path(held["path"]).is_file():
        return Path(held["path"])
    raise UserError(f"the image in {where} has no bytes; embed the image in the row or drop the row")


def _is_text(feature: Any) -> bool:
    inner = getattr(feature, "feature", None)
    return _is_text(inner) if inner is not None else getattr(feature, "dtype", None) in ("string", "large_string")


def _is_whole(feature: Any) -> bool:
    return str(getattr(feature, "dtype", "")).startswith(("int", "uint"))
