"""A column of a parquet file in a file of its own that is mapped into memory: any row at hand, none of them held.

Parquet packs hundreds of rows together, so that a row in random order would cost all of them. The file lies in the
folder of what is kept between runs, named after what it was made of, and the processes of a machine share it.
"""

import hashlib
import shutil
from pathlib import Path

import pyarrow as pa

from ..errors import UserError
from ..files import atomic_file, cache_folder
from .table import Table

HELD = 2**26  # bytes of encoded images that are simply read


def mapped_column(table: Table, name: str) -> pa.ChunkedArray:
    """The values of a column; in memory where they are few, otherwise mapped.

    Raises:
        UserError: the parquet file is damaged, or there is no room for the unpacked one.
    """
    size = sum(file.stat().st_size for file in table.files)
    if size <= HELD:
        return table.column(name)
    file = _place(table, name)
    if not file.exists():
        free = shutil.disk_usage(file.parent).free
        if free < 2 * size:
            raise UserError(
                f"the images of {table.path} are unpacked into {file.parent}, where {free:,} bytes are free and about "
                f"{size:,} are needed: free some, or name a folder on a larger disk with $FASTGEN_CACHE"
            )
        _unpack(table, name, file)
    with pa.memory_map(str(file)) as source:
        return pa.ipc.open_file(source).read_all()[name]


def _place(table: Table, name: str) -> Path:
    """The file of an unpacked column, named after the files that it is made of as they are now."""
    made_of = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in table.files]
    digest = hashlib.sha256(repr((name, made_of)).encode()).hexdigest()[:32]
    folder = cache_folder() / "columns"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{digest}.arrow"


def _unpack(table: Table, name: str, file: Path) -> None:
    with atomic_file(file) as temporary, pa.OSFile(str(temporary), "wb") as sink:
        batches = table.batches(name)
        first = next(batches)
        with pa.ipc.new_file(sink, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
