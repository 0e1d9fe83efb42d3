"""Where image files lie: folders, zip archives, parquet files and tar shards, each read in one fixed order.

Image i of a set is the i-th in that order: the order is what pairs files with the prompts of a text file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from fastgen.data.decode import SUFFIXES
from fastgen.data.pages import check_packing
from fastgen.data.table import BATCH
from fastgen.errors import UserError
from fastgen.limits import Cap, read_bytes
from fastgen.models.pipelines.folders import is_run, is_student

from . import manifests
from .archives import TarImages, ZipImages
from .encoded import EncodedImage, ImageSet, is_image
from .manifests import Entry, natural


@dataclass(frozen=True)
class FolderImages:
    """Image files below a folder: those that its manifest names, in its order, else all in the order of their numbers.

    Hidden ones and a contact sheet do not count, and beside a manifest those that it does not name.
    """

    folder: Path
    entries: tuple[Entry, ...]

    @classmethod
    def below(cls, folder: Path) -> "FolderImages":
        """Raises UserError for a folder without images, or one whose pictures a run or a model card put there."""
        manifest = manifests.highest(name for name in manifests.MANIFESTS if (folder / name).is_file())
        if manifest is not None:
            return cls(folder, manifests.read(str(folder / manifest), read_bytes(folder / manifest, Cap.JSON)))
        if is_student(folder) or is_run(folder):
            raise UserError(
                f"{folder} holds a pipeline, and images are wanted: draw some with fastgen sample, and name those"
            )
        found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        kept = sorted((PurePosixPath(path) for path in found if is_image(path)), key=natural)
        if not kept:
            raise UserError(
                f"folder {folder} holds no image ({' '.join(sorted(SUFFIXES))}) and no model_index.json; give a "
                "folder of images, a parquet, zip or tar file of images, or a pipeline folder"
            )
        return cls(folder, tuple(Entry(str(path)) for path in kept))

    @property
    def prompts(self) -> tuple[str, ...] | None:
        return manifests.prompts(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[EncodedImage]:
        for entry in self.entries:
            file = self.folder / entry.file
            small = file.is_file() and file.stat().st_size <= Cap.IMAGE.most
            content = file.read_bytes() if small else b""  # decoding refuses it by name
            yield EncodedImage(str(file), content, entry.label, entry.prompt, entry.flags)


@dataclass(frozen=True)
class ParquetImages:
    """Rows of a parquet file: `image` (bytes, or a struct with a field `bytes`) and integers `label`, if any."""

    file: Path
    prompts: None = None

    def __post_init__(self) -> None:
        schema = self._open().schema_arrow
        if "image" not in schema.names or not _holds_bytes(schema.field("image").type):
            raise UserError(
                f"parquet file {self.file} has no column `image` of bytes, or of a struct with `bytes`; its columns "
                f"are {', '.join(schema.names)}. Name the column of encoded images so."
            )
        if not len(self):
            raise UserError(f"parquet file {self.file} has no rows; give one with at least one image")

    def __len__(self) -> int:
        rows: int = self._open().metadata.num_rows
        return rows

    def __iter__(self) -> Iterator[EncodedImage]:
        schema = self._open().schema_arrow
        labelled = "label" in schema.names and pa.types.is_integer(schema.field("label").type)
        for number, row in enumerate(self._rows(["image", "label"] if labelled else ["image"])):
            cell = row["image"]
            content = (cell["bytes"] if isinstance(cell, dict) else cell) or b""
            name, small = f"row {number} of {self.file}", content if len(content) <= Cap.IMAGE.most else b""
            yield EncodedImage(name, small, manifests.class_in(name, row.get("label")))

    def _rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        file = self._open()
        at_once = min(BATCH, check_packing(self.file, columns))
        try:
            for batch in file.iter_batches(batch_size=at_once, columns=columns):
                yield from batch.to_pylist()
        except Exception as error:  # OSError, ArrowException, ValueError ... of damaged bytes
            raise self._damaged(error) from error

    def _open(self) -> parquet.ParquetFile:
        try:
            file = parquet.ParquetFile(self.file)
            _ = file.schema_arrow  # which is made when it is first asked for
            return file
        except Exception as error:  # likewise
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.file} cannot be read as a parquet file ({error}); copy or export it again")


def open_images(path: Path) -> ImageSet:
    """The images at `path`: a folder of images or of tar shards, a zip, tar or parquet file.

    Raises:
        UserError: there is none of these, or no image in it.
    """
    if path.is_dir():
        shards = tuple(sorted(path.glob("*.tar"), key=lambda shard: manifests.naturally(shard.name)))
        return TarImages(shards) if shards else FolderImages.below(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a folder of images, or a parquet, zip or tar file of images")
    if path.suffix == ".zip":
        return ZipImages(path)
    return TarImages((path,)) if ".tar" in path.suffixes[-2:] else ParquetImages(path)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
