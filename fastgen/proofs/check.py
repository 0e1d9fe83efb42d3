"""One line of a report: what was checked, whether it holds, and its figures."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """What was checked, whether it holds, and what was measured."""

    name: str
    holds: bool
    figures: str

    def __str__(self) -> str:
        return f"{'ok' if self.holds else 'FAILED':7}{self.name}: {self.figures}"


def attempted(name: str, prove: Callable[[], list[Check]]) -> list[Check]:
    """What `prove` finds; an exception of the objective is a check that fails, with its place."""
    try:
        return prove()
    except Exception as error:  # whatever a user's code raises
        place = traceback.extract_tb(error.__traceback__)[-1]
        return [Check(name, False, f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})")]
