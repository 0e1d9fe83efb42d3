"""Settings that know what belongs into them, and mappings that name a class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationInfo, create_model

from ..errors import UserError
from ..plugins import Kinds


class Strict(BaseModel):
    """Settings that refuse unknown names and numbers that are not finite, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def named(kinds: Kinds[Any], key: str) -> PlainValidator:
    """Builds an object from a mapping that names its class under `key` and gives its settings.

    A file's path is relative to `folder` of the validation's context, else to the working directory.
    """

    def build(raw: Any, info: ValidationInfo) -> Any:
        if isinstance(raw, tuple(kinds.own.values())):
            return raw
        try:
            if kinds.fits(type(raw)):
                return kinds.tried(lambda: raw, type(raw).__name__)
            return _made(raw, (info.context or {}).get("folder"))
        except UserError as error:
            raise ValueError(str(error)) from error

    def _made(raw: Any, folder: Path | None) -> Any:
        if not isinstance(raw, Mapping) or key not in raw:
            raise ValueError(f"give a mapping with `{key}`, one of {', '.join(kinds.own)}, or FILE.py:Class")
        name, settings = raw[key], {k: v for k, v in raw.items() if k != key}
        kind = kinds.find(str(name), folder)
        if kinds.is_own(kind):
            return _validated(kind, settings)
        return kinds.tried(lambda: _validated(kind, settings), str(name))

    return PlainValidator(build)


def _validated(kind: type, settings: Mapping[str, Any]) -> Any:
    model = create_model("Settings", __config__=Strict.model_config, settings=(kind, ...))
    return model.model_validate({"settings": settings}).settings  # type: ignore[attr-defined]
