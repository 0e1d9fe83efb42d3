"""What must hold of the student: `fid[4] < 5`, for CI."""

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fastgen.errors import UserError

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FORM = re.compile(
    r"\s*(?P<name>[a-z][\w-]*)\s*(\[\s*(?P<steps>\d+)\s*\])?\s*(?P<operator><=|>=|<|>)\s*"
    r"(?P<bound>[-+]?(\d+(\.\d*)?|\.\d+)(e[-+]?\d+)?)\s*",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Assertion:
    """A figure or cost of the student at `steps` (None: at every step count) and its bound."""

    text: str
    name: str
    steps: int | None
    operator: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> "Assertion":
        """Raises UserError for anything but NAME[STEPS] OPERATOR NUMBER, where [STEPS] may be missing."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise UserError(
                f"The assertion {text!r} cannot be read; write a figure, the step count in brackets, one of "
                "< <= > >= and a number, such as 'fid[4] < 5' or 'diversity_ratio >= 0.9'."
            )
        steps = None if match["steps"] is None else int(match["steps"])
        return cls(text.strip(), match["name"], steps, match["operator"], float(match["bound"]))

    def applies(self, steps: int | None) -> bool:
        """Whether it speaks of a student at this step count."""
        return self.steps is None or self.steps == steps

    def holds(self, value: float | None) -> bool:
        """A figure that was not measured holds nothing."""
        return value is not None and _OPERATORS[self.operator](value, self.bound)


@dataclass(frozen=True)
class Verdict:
    """An assertion beside what was measured: (row id, value) pairs; without a row nothing holds."""

    assertion: Assertion
    measured: tuple[tuple[str, float | None], ...]

    @property
    def holds(self) -> bool:
        return bool(self.measured) and all(self.assertion.holds(value) for _, value in self.measured)

    def line(self) -> str:
        """For the terminal."""
        found = ", ".join(
            f"{row}: {'not measured' if value is None else f'{value:.6g}'}" for row, value in self.measured
        )
        return f"{'holds ' if self.holds else 'FAILS '} {self.assertion.text}   ({found or 'no such student row'})"
