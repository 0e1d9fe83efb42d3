"""Settings that know what belongs into them, and mappings that name an entry of a table."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, PlainValidator, create_model

from ..errors import did_you_mean


class Strict(BaseModel):
    """Settings that refuse unknown names and numbers that are not finite, and never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


def named(table: Mapping[str, type], key: str) -> PlainValidator:
    """Builds an entry of `table` from a mapping that names it under `key` and gives its settings."""

    def build(raw: Any) -> Any:
        if isinstance(raw, tuple(table.values())):
            return raw
        if not isinstance(raw, Mapping) or key not in raw:
            raise ValueError(f"give a mapping with `{key}`, one of {', '.join(table)}")
        name, settings = raw[key], {k: v for k, v in raw.items() if k != key}
        if not isinstance(name, str) or name not in table:
            hint = did_you_mean(str(name), table, otherwise=f"known: {', '.join(table)}")
            raise ValueError(f"there is no {name!r}; {hint}")
        model = create_model("Settings", __config__=Strict.model_config, settings=(table[name], ...))
        return model.model_validate({"settings": settings}).settings  # type: ignore[attr-defined]

    return PlainValidator(build)
