"""What must hold of the student: `fid[4] < 5`, for CI."""

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

from fastgen.errors import UserError, did_you_mean

from ..images.pipelines import declared_steps
from ..images.sources import is_image_set
from ..metrics import chosen
from ..metrics_json import Measured, Verdict
from ..networks.protocols import PROTOCOLS
from ..options import Options
from ..rows import Bill, Row

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OF_TEACHER = ("diversity_ratio", "lpips_ratio")
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
                f"the assertion {text!r} cannot be read; write a figure, the step count in brackets, one of "
                "< <= > >= and a number, such as 'fid[4] < 5' or 'diversity_ratio >= 0.9'"
            )
        steps = None if match["steps"] is None else int(match["steps"])
        return cls(text.strip(), match["name"], steps, match["operator"], float(match["bound"]))

    def applies(self, steps: int | None) -> bool:
        """Whether it speaks of a student at this step count."""
        return self.steps is None or self.steps == steps

    def holds(self, value: float | None) -> bool:
        """A figure that was not measured holds nothing."""
        return value is not None and _OPERATORS[self.operator](value, self.bound)


def check_assertions(options: Options) -> None:
    """Refuses, before anything is measured, an assertion that nothing measured could make hold.

    Raises:
        UserError: it cannot be read, names no figure or cost of the student, or a step count that is not measured.
    """
    steps = options.steps or (declared_steps(options.student) if options.student else ())
    for assertion in map(Assertion.parse, options.assertions):
        _check_side(assertion, options)
        _check_name(assertion, options)
        if assertion.steps is not None and steps and assertion.steps not in steps:
            near = min(steps, key=lambda count: abs(count - (assertion.steps or 0)))
            raise UserError(
                f"the assertion {assertion.text!r} speaks of {assertion.steps} steps, but the student is measured at "
                f"{', '.join(map(str, steps))}: write {assertion.name}[{near}], or add the count with --steps"
            )


def _check_side(assertion: Assertion, options: Options) -> None:
    if options.student is None:
        raise UserError(f"the assertion {assertion.text!r} speaks of the student: give one with --student")
    if assertion.steps is not None and is_image_set(options.student):
        raise UserError(
            f"the assertion {assertion.text!r} names a step count, but {options.student} holds images, of which it is "
            f"not known: write {assertion.name} alone"
        )


def _check_name(assertion: Assertion, options: Options) -> None:
    """Figures by the names of `metrics.json`, `nfe` and the other costs, `reward_NAME` of --reward NAME=MODEL."""
    table = PROTOCOLS[options.protocol].metrics
    metrics = chosen(options.metrics, clip=options.clip is not None, lpips=options.wants_lpips, of=table)
    rewards = [f"reward_{text.partition('=')[0]}" for text in options.rewards]
    measured = [*(name for metric in metrics for name in metric.figures), *rewards]
    known = [*measured, *(cost.name for cost in fields(Bill))]
    if assertion.name not in known:
        hint = did_you_mean(assertion.name, known, otherwise=f"known: {', '.join(known)}")
        exists = assertion.name in (name for metric in table for name in metric.figures)
        why = "which these options do not measure (see --metrics, --clip, --lpips)" if exists else "which is no figure"
        raise UserError(f"the assertion {assertion.text!r} names {assertion.name}, {why}; {hint}")
    if assertion.name in OF_TEACHER and options.teacher is None:
        raise UserError(f"the assertion {assertion.text!r} compares with a teacher: give one with --teacher")


def verdicts(assertions: Iterable[str], rows: Sequence[Row]) -> tuple[Verdict, ...]:
    """What --assert says of the student's rows; without a row, or a value, nothing holds."""
    return tuple(_verdict(Assertion.parse(text), rows) for text in assertions)


def _verdict(assertion: Assertion, rows: Sequence[Row]) -> Verdict:
    found = tuple(
        Measured(row.id, _value(row, assertion.name))
        for row in rows
        if row.role == "student" and assertion.applies(row.steps)
    )
    holds = bool(found) and all(assertion.holds(one.value) for one in found)
    return Verdict(assertion.text, holds, found)


def _value(row: Row, name: str) -> float | None:
    """A figure of a row, or one of its costs, by name."""
    if name in row.metrics:
        return row.metrics[name].value
    return None if row.costs is None else getattr(row.costs, name, None)
