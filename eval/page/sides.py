"""Who stands beside whom: the teacher at many steps, the teacher at the student's few steps, the student."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Stop:
    """One position of the step slider.

    Attributes:
        key: the step count, "files" for a student that is image files, or a title where several have the same steps.
        teacher: at the same few steps; None where it was not measured.
        student: None in a report on a teacher alone.
    """

    key: str
    teacher: Row | None
    student: Row | None


@dataclass(frozen=True)
class Sides:
    """The rows of a report in their parts.

    Attributes:
        real: the reference, then held-out real images.
        teacher: at the most steps.
    """

    real: tuple[Row, ...]
    teacher: Row | None
    stops: tuple[Stop, ...]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Sides":
        """One stop per row of the student, fewest steps first; without a student, per further row of the teacher."""
        real, teachers, students = ([row for row in rows if row["role"] == role] for role in _ROLES)
        many = max(teachers, key=_steps, default=None)
        few = {_key(row): row for row in teachers if row is not many}
        counts = Counter(map(_key, students))
        own = {
            _key(row) if counts[_key(row)] == 1 else row["title"].removeprefix("student "): row for row in students
        } or few
        stops = [
            Stop(key, few.get(_key(row)), row if students else None)
            for key, row in sorted(own.items(), key=lambda entry: _steps(entry[1]))
        ]
        return cls(tuple(real), many, tuple(stops))

    def lacks_teacher(self, stop: Stop) -> bool:
        """Whether the teacher has rows, but none at the steps of `stop`; of files the steps are not known."""
        if stop.teacher is not None or self.teacher is None or stop.student is None:
            return False
        return _key(stop.student) not in ("files", _key(self.teacher))

    def shown(self) -> Iterator[tuple[str | None, str, Row]]:
        """Teacher and student rows as (slider key or None for always, CSS class, row), the teacher first."""
        if self.teacher is not None:
            yield None, "many", self.teacher
        for stop in self.stops:
            for kind, row in (("few", stop.teacher), ("student", stop.student)):
                if row is not None:
                    yield stop.key, kind, row


def scatter(figure: Mapping[str, Any]) -> str:
    """How far a figure may be off: its spread over blocks of seeds with their values, or its interval."""
    if figure["spread"] is not None:
        return f"sd\u00a0{figure['spread']:.2g}: {', '.join(f'{value:.3g}' for value in figure['values'])}"
    return "" if figure["low"] is None else f"{figure['low']:.3g} to {figure['high']:.3g}"


_ROLES = ("real", "teacher", "student")


def _key(row: Row) -> str:
    return "files" if row["steps"] is None else str(row["steps"])


def _steps(row: Row) -> float:
    return float("inf") if row["steps"] is None else float(row["steps"])
