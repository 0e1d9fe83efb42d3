"""The columns and cells of the tables: all figures, and by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from ..rows import ClassRow, Row
from .sides import Column, Sides


@dataclass(frozen=True)
class Cost:
    """A column of the headline table; `name` is that of the cost in a row."""

    label: str
    name: str
    words: str

    def of(self, row: Row) -> float | None:
        """Network calls are also known of rows that were not timed."""
        value: float | None = row.nfe if self.name == "nfe" else getattr(row.costs, self.name, None)
        return value


_COSTS = (
    Cost("NFE", "nfe", "network calls per image, a guided pair counts two"),
    Cost("s/image", "seconds_per_image", "median over batches"),
    Cost("images/s", "images_per_second", "of all processes together"),
    Cost("peak GiB", "peak_memory_gib", "largest GPU allocation"),
)


@dataclass(frozen=True)
class Headline:
    """The costs that any row has, and the letters of the reasons why figures are missing."""

    costs: tuple[Cost, ...]
    letters: Mapping[str, str]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Headline":
        reasons = dict.fromkeys(reason for row in rows for reason in row.not_measured.values())
        return cls(
            costs=tuple(cost for cost in _COSTS if any(cost.of(row) is not None for row in rows)),
            letters={reason: _letter(index) for index, reason in enumerate(reasons)},
        )


@dataclass(frozen=True)
class Classes:
    """The table by class: its columns, and of every class its name and a cell per column, None where it is absent."""

    columns: tuple[Column, ...]
    lines: tuple[tuple[int, str, tuple[ClassRow | None, ...]], ...]

    @classmethod
    def of(cls, sides: Sides) -> "Classes":
        known = [(column, {one.label: one for one in row.per_class}) for column, row in sides.shown if row.per_class]
        names = {label: one.name for _, rows in known for label, one in rows.items()}
        lines = ((label, name, tuple(rows.get(label) for _, rows in known)) for label, name in sorted(names.items()))
        return cls(tuple(column for column, _ in known), tuple(lines))


def _letter(index: int) -> str:
    return ascii_lowercase[index] if index < len(ascii_lowercase) else str(index + 1)
