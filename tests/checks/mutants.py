"""What is made wrong on purpose, and the check that has to notice."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """(owner, name, wrong version) of what is replaced, and the check that has to notice."""

    patches: list[tuple[object, str, object]]
    check: Callable[[], None]
