"""Who stands beside whom: the teacher at many steps, the teacher at the student's few steps, the student."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..rows import Row


@dataclass(frozen=True)
class Column:
    """A place beside others: shown always (key None) or at one position of the slider.

    Attributes:
        kind: "many", "few" and "student" are CSS classes: teacher at most steps, teacher at the student's, student.
        row: None for a teacher that was not measured at the student's steps.
    """

    key: str | None
    kind: Literal["many", "few", "student", "real"]
    title: str
    row: Row | None


@dataclass(frozen=True)
class Mark:
    """One position of the step slider.

    Attributes:
        key: the step count, "files" for a student that is image files, or a title where several have the same steps.
        teacher: the teacher's row at the same few steps; None where it was not measured.
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
        teacher: the teacher's row at the most steps.
    """

    real: tuple[Row, ...]
    teacher: Row | None
    marks: tuple[Mark, ...]

    @classmethod
    def of(cls, rows: Iterable[Row]) -> "Sides":
        """One mark per row of the student, fewest steps first; without a student, per further row of the teacher."""
        real, teachers, students = ([row for row in rows if row.role == role] for role in _ROLES)
        many = max(teachers, key=_steps, default=None)
        few = {_key(row): row for row in teachers if row is not many}
        counts = Counter(map(_key, students))
        own = {_key(row) if counts[_key(row)] == 1 else row.title.removeprefix("student "): row for row in students}
        marks = [
            Mark(key, few.get(_key(row)), row if students else None)
            for key, row in sorted((own or few).items(), key=lambda entry: _steps(entry[1]))
        ]
        return cls(tuple(real), many, tuple(marks))

    @property
    def title(self) -> str:
        """The student's folder beside the teacher's."""
        student = next((mark.student for mark in self.marks if mark.student is not None), None)
        names = [row.source.path.rstrip("/").rpartition("/")[2] for row in (student, self.teacher) if row is not None]
        return " beside ".join(names) or "Report"

    @property
    def by_count(self) -> bool:
        """Whether the marks are step counts."""
        return all(mark.key.isdecimal() for mark in self.marks)

    @property
    def columns(self) -> tuple[Column, ...]:
        """Teacher and student, the teacher first; a gap where it was not measured at the student's steps."""
        return tuple(self._columns())

    @property
    def shown(self) -> tuple[tuple[Column, Row], ...]:
        """The columns that have a row."""
        return tuple((column, column.row) for column in self.columns if column.row is not None)

    def _columns(self) -> Iterator[Column]:
        if self.teacher is not None:
            yield Column(None, "many", self.teacher.title, self.teacher)
        for mark in self.marks:
            if mark.teacher is not None or self._lacks_teacher(mark):
                title = f"teacher, steps: {mark.key}" if mark.teacher is None else mark.teacher.title
                yield Column(mark.key, "few", title, mark.teacher)
            if mark.student is not None:
                yield Column(mark.key, "student", mark.student.title, mark.student)

    def _lacks_teacher(self, mark: Mark) -> bool:
        """Whether the teacher has rows, but none at the steps of `mark`; of files the steps are not known."""
        if self.teacher is None or mark.student is None:
            return False
        return _key(mark.student) not in ("files", _key(self.teacher))


_ROLES = ("real", "teacher", "student")


def _key(row: Row) -> str:
    return "files" if row.steps is None else str(row.steps)


def _steps(row: Row) -> float:
    return float("inf") if row.steps is None else float(row.steps)
