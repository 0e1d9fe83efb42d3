"""Who stands beside whom: the teacher at many steps, the teacher at the student's few steps, the student."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Stop:
    """One position of the step slider.

    Attributes:
        key: the step count, or "files" for a student that is image files.
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
        own = {_key(row): row for row in students}
        keys = sorted(own or few, key=lambda key: _steps(own.get(key) or few[key]))
        return cls(tuple(real), many, tuple(Stop(key, few.get(key), own.get(key)) for key in keys))

    def lacks_teacher(self, stop: Stop) -> bool:
        """Whether the teacher has rows, but none at the steps of `stop`; of files the steps are not known."""
        return stop.teacher is None and self.teacher is not None and stop.key not in ("files", _key(self.teacher))

    def shown(self) -> Iterator[tuple[str | None, str, Row]]:
        """Teacher and student rows as (slider key or None for always, CSS class, row), the teacher first."""
        if self.teacher is not None:
            yield None, "many", self.teacher
        for stop in self.stops:
            for kind, row in (("few", stop.teacher), ("student", stop.student)):
                if row is not None:
                    yield stop.key, kind, row


_ROLES = ("real", "teacher", "student")


def _key(row: Row) -> str:
    return "files" if row["steps"] is None else str(row["steps"])


def _steps(row: Row) -> float:
    return float("inf") if row["steps"] is None else float(row["steps"])
