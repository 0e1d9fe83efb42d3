"""Settings that nothing reads: what is asked for and would not be done is refused, not ignored."""

from dataclasses import MISSING, fields
from typing import Any

from pydantic import BaseModel

from .errors import UserError


class UnreadError(UserError, ValueError):
    """A setting was given that nothing reads; a config lists it beside what else is wrong with it."""


def refuse_unread(settings: Any, *names: str, why: str, remedy: str, within: str = "") -> None:
    """Refuses settings that differ from their defaults although nothing reads them.

    Args:
        settings: a dataclass or a pydantic model.
        names: of those of its settings that nothing reads.
        why: what leaves them unread, as in "sharing is full".
        remedy: what would have them read, as in "set sharing=lora".
        within: path of the settings in the config or in the objective, with a dot at its end.

    Raises:
        UnreadError: naming the first of them, its value, why and the remedy.
    """
    usual = _defaults(settings)
    for name in names:
        if (value := getattr(settings, name)) != usual[name]:
            raise UnreadError(
                f"{within}{name} is {value}, but {why}, so that it would be ignored: {remedy}, or leave it out"
            )


def names_of(settings: Any, *but: str) -> list[str]:
    """Names of the settings of a dataclass or a pydantic model, but for some."""
    return [name for name in _defaults(settings) if name not in but]


def _defaults(settings: Any) -> dict[str, Any]:
    """A default that is none, of a required setting, equals no value."""
    if isinstance(settings, BaseModel):
        known = type(settings).model_fields
        return {name: field.get_default(call_default_factory=True) for name, field in known.items()}
    return {
        field.name: field.default if field.default_factory is MISSING else field.default_factory()
        for field in fields(settings)
    }
