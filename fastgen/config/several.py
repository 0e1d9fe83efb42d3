"""Settings of several students: how the conditions are divided among them."""

from typing import Annotated

from pydantic import AfterValidator, Field, NonNegativeInt

Count = Annotated[int, Field(ge=2, le=1000)]
Lists = Annotated[tuple[tuple[NonNegativeInt, ...], ...], Field(min_length=2)]


def _apart(value: int | tuple[tuple[int, ...], ...] | None) -> int | tuple[tuple[int, ...], ...] | None:
    if isinstance(value, tuple):
        every = [label for labels in value for label in labels]
        if not all(value):
            raise ValueError("a list of classes is empty: give each student at least one, or leave it out")
        if twice := next((label for label in every if every.count(label) > 1), None):
            raise ValueError(f"class {twice} is in two lists, and one student answers for it: leave it in one")
    return value


StudentsSetting = Annotated[Count | Lists | None, AfterValidator(_apart)]
"""Number of students; the classes of each; or None for one student."""
