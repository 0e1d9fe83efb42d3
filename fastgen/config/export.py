"""Settings of the export."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from ..models.pipelines.source import Dtype
from .strict import Strict


class ExportConfig(Strict):
    """Where the exported pipeline goes, and how its network is saved.

    path: folder of the export; OUT/student if not given.
    dtype: dtype of its weights; auto saves in the run's half precision what that represents exactly and the rest in
        fp32, so that at most 1 % of the trained update is lost.
    """

    path: Path | None = None
    dtype: Dtype = "auto"


def _folder_alone(raw: Any) -> Any:
    return {"path": raw} if isinstance(raw, str | Path) else {} if raw is None else raw


ExportSetting = Annotated[ExportConfig, BeforeValidator(_folder_alone)]
"""A folder alone is short for a mapping with it."""
