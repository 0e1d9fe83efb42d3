"""The columns and cells of the tables: all figures, and by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from ..rows import ClassRow, PromptRow, Row
from .sides import Column, Sides

AT_AN_END = 20
"""Prompts that are shown with the lowest scores, and with the highest."""


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


@dataclass(frozen=True)
class Prompts:
    """The table by prompt: its columns, and of a prompt a cell per column, None where that row did not keep it.

    Attributes:
        lines: the prompts of the lowest and the highest CLIP score in the last column, lowest first.
        left_out: prompts between these.
    """

    columns: tuple[Column, ...]
    lines: tuple[tuple[str, tuple[PromptRow | None, ...]], ...]
    left_out: int

    @classmethod
    def of(cls, sides: Sides) -> "Prompts":
        known = [(column, {one.prompt: one for one in row.per_prompt}) for column, row in sides.shown if row.per_prompt]
        decisive = list(known[-1][1]) if known else []
        shown = decisive if len(decisive) <= 2 * AT_AN_END else decisive[:AT_AN_END] + decisive[-AT_AN_END:]
        lines = ((prompt, tuple(rows.get(prompt) for _, rows in known)) for prompt in shown)
        return cls(tuple(column for column, _ in known), tuple(lines), len(decisive) - len(shown))


@dataclass(frozen=True)
class Latencies:
    """The table of batch sizes: seconds per image of each row, None where memory did not suffice."""

    batches: tuple[int, ...]
    lines: tuple[tuple[Row, tuple[float | None, ...]], ...]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Latencies":
        timed = [row for row in rows if row.latency]
        batches = tuple(dict.fromkeys(one.batch_size for row in timed for one in row.latency))
        found = [(row, {one.batch_size: one.seconds_per_image for one in row.latency}) for row in timed]
        return cls(batches, tuple((row, tuple(map(seconds.get, batches))) for row, seconds in found))


def _letter(index: int) -> str:
    return ascii_lowercase[index] if index < len(ascii_lowercase) else str(index + 1)
