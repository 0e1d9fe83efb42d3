"""One or several parquet files as one table, with errors that name the file, the column and the row."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as arrow
import pyarrow.parquet as parquet

from ..errors import UserError
from ..limits import Cap, check_ratio
from .pages import check_packing

BATCH = 16  # rows that are unpacked at once, at most


class Table:
    """The rows of a parquet file, or of all *.parquet files of a folder (or its folder `data`) in order of their names.

    Raises (every method does):
        UserError: there is no such file, it is damaged, or it has no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = sorted(path.glob("*.parquet")) or sorted(path.glob("data/*.parquet")) if path.is_dir() else [path]
        if not files or not files[0].exists():
            raise UserError(f"there is no parquet file at {path}; give the path of one, or of their folder")
        with self._readable():
            self._rows = arrow.dataset([str(file) for file in files], format="parquet")
            _check_names(self._rows.schema)
            self._ends: list[int] = list(accumulate(part.count_rows() for part in self._rows.get_fragments()))
        if not self._ends[-1]:
            raise UserError(f"parquet data at {path} has no rows; give a file with at least one image")

    def __len__(self) -> int:
        return self._ends[-1]

    def where(self, row: int) -> str:
        """What to call a row in a message: its number in its own file, counted from 0."""
        number = bisect_right(self._ends, row)
        start = self._ends[number - 1] if number else 0
        return f"row {row - start} of {self._rows.files[number]}"

    def usual(self, names: tuple[str, ...], fits: Callable[[pa.DataType], bool]) -> str | None:
        """The first of `names` that is a column of a fitting type."""
        schema = self._rows.schema
        return next((name for name in names if name in schema.names and fits(schema.field(name).type)), None)

    def chosen(self, name: str, fits: Callable[[pa.DataType], bool]) -> str:
        """`name`, which must be a column of a fitting type."""
        types = {field.name: field.type for field in self._rows.schema}
        if name in types and fits(types[name]):
            return name
        problem = f"is of type {types[name]}" if name in types else "does not exist"
        raise UserError(
            f"column {name!r} of {self.path} {problem}; images must be bytes or a struct with a field "
            "`bytes`, labels integers and captions strings. Name one of its columns: "
            f"{', '.join(f'{column} ({kind})' for column, kind in types.items())}."
        )

    @property
    def files(self) -> list[Path]:
        """The files, in the order of their rows."""
        return [Path(file) for file in self._rows.files]

    def batches(self, name: str) -> Iterator[pa.RecordBatch]:
        """The values of a column a few at a time, in order; empty cells are allowed."""
        with self._readable():
            schema = self._rows.schema.empty_table().select([name]).schema
            for file in self.files:
                rows = min(BATCH, check_packing(file, [name]))
                with parquet.ParquetFile(file) as opened:  # a dataset's scanner would hold a whole group of rows
                    yield from (batch.cast(schema) for batch in opened.iter_batches(rows, columns=[name]))

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of a column in memory; empty cells are allowed."""
        batches: list[pa.RecordBatch] = []
        size, packed = 0, sum(file.stat().st_size for file in self.files)
        for batch in self.batches(name):
            size += batch.nbytes
            Cap.COLUMN.check(size, f"column {name!r} of {self.path}")
            check_ratio(size, packed, str(self.path))
            batches.append(batch)
        with self._readable():
            values = pa.Table.from_batches(batches, self._rows.schema.empty_table().select([name]).schema)[name]
            values.validate(full=True)
        if len(values) != len(self):
            raise UserError(
                f"column {name!r} of {self.path} has {len(values):,} values for {len(self):,} rows; the file is "
                "damaged: write or download it again"
            )
        return values

    def full_column(self, name: str) -> pa.ChunkedArray:
        """The values of a column that must have one in every row."""
        values = self.column(name)
        if values.null_count:
            first = self.where(values.is_null().index(True).as_py())
            raise UserError(
                f"column {name!r} of {self.path} is empty in {values.null_count} rows, first in {first}; "
                "fill them (a caption may be an empty string) or drop those rows"
            )
        return values

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last one of a column's name
            raise UserError(
                f"parquet data at {self.path} cannot be read ({str(error).splitlines()[0]}); the file is "
                "damaged, incomplete or not parquet: write or download it again"
            ) from error


def _check_names(columns: Iterable[pa.Field]) -> None:
    """Raises UnicodeDecodeError for columns, or fields of theirs, whose names are no text."""
    for column in columns:
        _ = column.name
        if pa.types.is_struct(column.type):
            _check_names(column.type)
