"""Settings that know what belongs into them, and mappings that name a class."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationInfo, create_model
from pydantic_core import PydanticKnownError, SchemaValidator
from pydantic_core.core_schema import no_info_before_validator_function

from ..errors import UserError
from ..plugins import Kinds

_VALUES = ("default", "metadata", "config", "cls")  # parts of a schema that are none


class Strict(BaseModel):
    """Settings that refuse unknown names and numbers that are not finite, and never change.

    Neither text nor true is a number, and no number is true: what YAML reads as text was not written as a number.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        cls.__pydantic_validator__ = SchemaValidator(_strictly(cls.__pydantic_core_schema__), _use_prebuilt=False)


def _strictly(schema: Any) -> Any:
    """The schema with numbers and booleans, at any depth, that only numbers and booleans are taken for."""
    if isinstance(schema, (list, tuple)):
        return type(schema)(map(_strictly, schema))
    if not isinstance(schema, dict):
        return schema
    inner = {key: value if key in _VALUES else _strictly(value) for key, value in schema.items()}
    if inner.get("type") in ("int", "float"):
        return no_info_before_validator_function(_Number(f"{inner['type']}_type"), inner)
    return {**inner, "strict": True} if inner.get("type") == "bool" else inner


class _Number:
    """Passes what is neither text nor a boolean, 1e5 for an integer included; the error is pydantic's own."""

    def __init__(self, error: str) -> None:
        self._error: Any = error

    def __call__(self, value: Any) -> Any:
        if isinstance(value, (str, bool)):
            raise PydanticKnownError(self._error)
        return value


def named(kinds: Kinds[Any], key: str) -> PlainValidator:
    """Builds an object from a mapping that names its class under `key` and gives its settings.

    A file's path is relative to `folder` of the validation's context, else to the working directory.
    """

    def build(raw: Any, info: ValidationInfo) -> Any:
        if isinstance(raw, tuple(kinds.own.values())):
            return raw
        try:
            if kinds.fits(type(raw)):
                kinds.completed(type(raw))
                return kinds.tried(lambda: raw, type(raw).__name__)
            return _made(raw, (info.context or {}).get("folder"))
        except UserError as error:
            raise ValueError(str(error)) from error

    def _made(raw: Any, folder: Path | None) -> Any:
        if not isinstance(raw, Mapping) or not isinstance(raw.get(key), str):
            raise ValueError(f"give a mapping with `{key}`, one of {', '.join(kinds.own)}, or FILE.py:Class")
        name, settings = raw[key], {k: v for k, v in raw.items() if k != key}
        kind = kinds.find(name, folder)
        if kinds.is_own(kind):
            return _validated(kind, settings)
        return kinds.tried(lambda: _validated(kind, settings), name)

    return PlainValidator(build)


def one_or_several(kinds: Kinds[Any], key: str, joined: Any) -> PlainValidator:
    """Validates one object as `named` does, or a list of them, each with its `weight`, which becomes one.

    Args:
        kinds, key: as of `named`.
        joined: class that is made of the objects of a list and of their weights, 1 where not given.
    """
    one = cast(Callable[[Any, ValidationInfo], Any], named(kinds, key).func)

    def build(raw: Any, info: ValidationInfo) -> Any:
        if not isinstance(raw, list | tuple):
            return raw if isinstance(raw, joined) else one(raw, info)
        if not raw or not all(isinstance(entry, Mapping) for entry in raw):
            raise ValueError(f"a list holds mappings with `{key}` and a `weight`, at least one")
        settings = [{name: value for name, value in entry.items() if name != "weight"} for entry in raw]
        weights = [entry.get("weight", 1.0) for entry in raw]
        for weight in weights:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < float("inf"):
                raise ValueError(f"weight is {weight!r}: give a number above 0")
        return joined(tuple(one(entry, info) for entry in settings), tuple(map(float, weights)))

    return PlainValidator(build)


def _validated(kind: type, settings: Mapping[str, Any]) -> Any:
    return _settings_of(kind).model_validate({"settings": settings}).settings  # type: ignore[attr-defined]


@cache
def _settings_of(kind: type) -> type[Strict]:
    """A model of this class's settings: to make one takes as long as to read a config."""
    return create_model("Settings", __base__=Strict, settings=(kind, ...))
