"""What is known of encoded images without their files: names, sizes, classes and captions, noted in one file."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..files import atomic_file
from .captions import Captions
from .images import ImageSource, Records
from .mixture import sources_in
from .sizes import sizes_of
from .source import Source
from .texts import Texts

AT_ONCE = 4096  # rows of a batch of the file
_ABOUT = b"fastgen"
_COLUMNS = {
    "name": pa.string(),
    "height": pa.int64(),
    "width": pa.int64(),
    "label": pa.int64(),
    "captions": pa.list_(pa.string()),
}


def note(records: Records, file: Path, contents: Mapping[str, str]) -> None:
    """Writes what is known of some images.

    Args:
        contents: hashes of all that a run's data hold, see `contents_of`.
    """
    captions, sizes, count = records.captions, sizes_of(records), len(records)
    about = {"contents": dict(contents), "num_classes": records.num_classes, "captions": captions is not None}
    schema = pa.schema(_COLUMNS, metadata={_ABOUT: json.dumps(about)})
    with atomic_file(file) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as out:
        for start in range(0, count, AT_ONCE):
            numbers = range(start, min(start + AT_ONCE, count))
            labels = records.labels(numbers)
            rows = {
                "name": [records.named(number) for number in numbers],
                "height": sizes[numbers.start : numbers.stop, 0],
                "width": sizes[numbers.start : numbers.stop, 1],
                "label": [None] * len(numbers) if labels is None else labels.numpy(),
                "captions": [None if captions is None else captions.of_item(number) for number in numbers],
            }
            arrays = [pa.array(values, kind) for values, kind in zip(rows.values(), _COLUMNS.values(), strict=True)]
            out.write_batch(pa.record_batch(arrays, schema=schema))


class Known:
    """Images by what was noted of them, in place of their files; read by memory map.

    Raises:
        UserError: the file is damaged.
    """

    files: Sequence[Path] = ()

    def __init__(self, file: Path) -> None:
        try:
            with pa.memory_map(str(file)) as source:
                self._rows = pa.ipc.open_file(source).read_all()
            about = json.loads(self._rows.schema.metadata[_ABOUT])
            self.contents: dict[str, str] = about["contents"]
            self.num_classes: int | None = about["num_classes"]
            self._has_captions: bool = about["captions"]
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} cannot be read ({error}); run fastgen precompute again") from error

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """Heights and widths, [n, 2]."""
        return np.stack([self._rows[name].to_numpy() for name in ("height", "width")], axis=1)

    @cached_property
    def captions(self) -> Captions | None:
        """The captions of every image; None where they have none."""
        if not self._has_captions:
            return None
        cells = self._rows["captions"].combine_chunks()
        starts = cells.offsets.to_numpy().astype(np.int64)
        several = len(starts) - 1 < int(starts[-1])
        return Captions(_Column(cells.flatten()), starts if several else None)

    def labels(self, numbers: Sequence[int]) -> Tensor | None:
        """The classes of these images."""
        return None if self.num_classes is None else self._labels[torch.as_tensor(numbers)]

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(self._rows["label"].to_numpy().astype(np.int64))

    def named(self, number: int) -> str:
        """What an image was called."""
        return str(self._rows["name"][number])

    def encoded(self, number: int) -> NoReturn:
        """Raises UserError: there is no image."""
        raise UserError(
            f"image {self.named(number)} is not at hand, and is not among what was precomputed: bring the data back, "
            "or run fastgen precompute with these settings where they are"
        )


class _Column(Texts):
    """Texts of a column."""

    def __init__(self, cells: pa.StringArray) -> None:
        self._cells = cells

    def __len__(self) -> int:
        return len(self._cells)

    def text(self, number: int) -> str:
        return str(self._cells[number])


def parts_of(source: Source) -> list[ImageSource]:
    """The sources of encoded images that a source consists of; none where one of them is another, or a stream."""
    parts = sources_in(source)
    images = [part for part in parts if isinstance(part, ImageSource) and part.sequential is None]
    return images if len(images) == len(parts) else []
