"""Settings of an objective that its other settings leave unread."""

from dataclasses import MISSING, Field, fields
from typing import Any


def check_unread(settings: Any, *names: str, because: str, within: str = "") -> None:
    """Refuse settings that differ from their defaults although nothing reads them.

    Args:
        settings: a dataclass.
        names: of its fields that nothing reads.
        because: the setting that leaves them so, with its value.
        within: path of these settings in the objective's own, with a dot at its end.

    Raises:
        ValueError: naming the setting, its value and what leaves it unread.
    """
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in names and value != _usual(field):
            raise ValueError(
                f"{within}{field.name} is {value}, which is not read where {because}: leave it out, or change that"
            )


def check_huber(settings: Any) -> None:
    """Raises ValueError for a c of the Huber distances where `distance` is none of them."""
    if settings.distance not in ("huber", "pseudo_huber"):
        check_unread(settings, "huber", because=f"distance is {settings.distance}")


def _usual(field: "Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()
