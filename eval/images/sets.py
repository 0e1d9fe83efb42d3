"""Where image files lie: folders, zip archives, parquet files and tar shards, each read in one fixed order.

Image i of a set is the i-th in that order: the order is what pairs files with the prompts of a text file.
"""

import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as parquet

from fastgen.data.decode import SUFFIXES
from fastgen.errors import UserError

from . import manifests
from .manifests import Entry, natural

CONTACT_SHEET = "grid.png"  # `fastgen sample` writes it beside the images
_MAX_BYTES = 2**28  # of one member of an archive; a larger one is not an image


@dataclass(frozen=True)
class EncodedImage:
    """An image file's content, what error messages call it, and what is known of it.

    Attributes:
        prompt: what it was asked for.
        flags: flags that the pipeline's own checkers raised on it.
    """

    name: str
    content: bytes
    label: int | None
    prompt: str | None = None
    flags: tuple[str, ...] = ()


class ImageSet(Protocol):
    """A finite set of encoded images that can be read in order, again and again.

    Attributes:
        prompts: prompts that the images were drawn for; None where the set does not say it before it is read.
    """

    @property
    def prompts(self) -> tuple[str, ...] | None: ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[EncodedImage]: ...


@dataclass(frozen=True)
class FolderImages:
    """Image files below a folder: those that its manifest names, in its order, else all in the order of their numbers.

    Hidden ones and a contact sheet do not count, and beside a manifest those that it does not name.
    """

    folder: Path
    entries: tuple[Entry, ...]

    @classmethod
    def below(cls, folder: Path) -> "FolderImages":
        """Raises UserError for a folder without images."""
        manifest = manifests.highest(name for name in manifests.MANIFESTS if (folder / name).is_file())
        if manifest is not None:
            return cls(folder, manifests.read(str(folder / manifest), (folder / manifest).read_bytes()))
        found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        kept = sorted((PurePosixPath(path) for path in found if _is_image(path)), key=natural)
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
            content = file.read_bytes() if file.is_file() else b""  # decoding refuses it by name
            yield EncodedImage(str(file), content, entry.label, entry.prompt, entry.flags)


@dataclass(frozen=True)
class ZipImages:
    """Image files of a zip archive, chosen and ordered as those of a folder.

    Labels may also come from a `dataset.json`, which StyleGAN and EDM write: {"labels": [[name, class], ...]}.
    """

    file: Path

    def __post_init__(self) -> None:
        if not len(self):
            raise UserError(f"archive {self.file} holds no image ({' '.join(sorted(SUFFIXES))}); give another one")

    @property
    def prompts(self) -> tuple[str, ...] | None:
        with self._open() as archive:
            return manifests.prompts(self._entries(archive))

    def __len__(self) -> int:
        with self._open() as archive:
            return len(self._entries(archive))

    def __iter__(self) -> Iterator[EncodedImage]:
        with self._open() as archive:
            labels, there = self._labels(archive), {member.filename: member for member in archive.infolist()}
            for entry in self._entries(archive):
                member = there.get(entry.file)
                small = member is not None and member.file_size <= _MAX_BYTES
                content = self._content(archive, entry.file) if small else b""
                label = labels.get(entry.file, entry.label)
                yield EncodedImage(f"{entry.file} of {self.file}", content, label, entry.prompt, entry.flags)

    def _open(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.file)
        except (OSError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.file} cannot be read as a zip archive ({error}); copy it again") from error

    def _entries(self, archive: zipfile.ZipFile) -> list[Entry]:
        names = archive.namelist()
        manifest = manifests.highest(names)
        if manifest is None:
            return [Entry(name) for name in sorted(names, key=_naturally) if _is_image(PurePosixPath(name))]
        named = manifests.read(f"{self.file}/{manifest}", self._content(archive, manifest))
        return [replace(entry, file=str(PurePosixPath(manifest).parent / entry.file)) for entry in named]

    def _content(self, archive: zipfile.ZipFile, name: str) -> bytes:
        try:
            return archive.read(name)
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error):
            return b""  # damaged or encrypted: an empty image, which decoding refuses by name

    def _labels(self, archive: zipfile.ZipFile) -> dict[str, int]:
        if "dataset.json" not in archive.namelist():
            return {}
        try:
            pairs = json.loads(archive.read("dataset.json"))["labels"] or []
            return {name: label for name, label in pairs if isinstance(label, int)}
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f'dataset.json of {self.file} cannot be read ({error}); it must hold {{"labels": [[name, class], '
                "...]}. Mend it or take it out."
            ) from error


@dataclass(frozen=True)
class TarImages:
    """Images of webdataset shards (.tar) in the order of the shards and of their members.

    Members that share a name up to its first dot belong together: `0001.png` and its class `0001.cls`.
    """

    shards: tuple[Path, ...]
    prompts: None = None

    def __post_init__(self) -> None:
        if not len(self):
            raise UserError(f"shard {self.shards[0]} holds no image ({' '.join(sorted(SUFFIXES))}); give another one")

    def __len__(self) -> int:
        return sum(_is_image(PurePosixPath(member.name)) for _, _, member in self._members())

    def __iter__(self) -> Iterator[EncodedImage]:
        key, image, label = "", None, None
        for shard, archive, member in self._members():
            path = PurePosixPath(member.name)
            own = f"{shard}:{path.parent / path.name.partition('.')[0]}"
            if own != key:
                if image is not None:
                    yield EncodedImage(*image, label)
                key, image, label = own, None, None
            if _is_image(path):
                image = (f"{member.name} of {shard}", _tar_content(archive, member))
            elif path.suffix == ".cls":
                label = _class_number(_tar_content(archive, member))
        if image is not None:
            yield EncodedImage(*image, label)

    def _members(self) -> Iterator[tuple[Path, tarfile.TarFile, tarfile.TarInfo]]:
        for shard in self.shards:
            try:
                with tarfile.open(shard) as archive:
                    yield from ((shard, archive, member) for member in archive if member.isfile())
            except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
                raise UserError(f"{shard} cannot be read as a tar shard ({error}); copy it again") from error


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
            content = cell["bytes"] if isinstance(cell, dict) else cell
            yield EncodedImage(f"row {number} of {self.file}", content or b"", row.get("label"))

    def _rows(self, columns: list[str]) -> Iterator[dict[str, Any]]:
        try:
            for batch in self._open().iter_batches(batch_size=256, columns=columns):
                yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from error

    def _open(self) -> parquet.ParquetFile:
        try:
            return parquet.ParquetFile(self.file)
        except (OSError, pa.ArrowException) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> UserError:
        return UserError(f"{self.file} cannot be read as a parquet file ({error}); copy or export it again")


def open_images(path: Path) -> ImageSet:
    """The images at `path`: a folder of images or of tar shards, a zip, tar or parquet file.

    Raises:
        UserError: there is none of these, or no image in it.
    """
    if path.is_dir():
        shards = tuple(sorted(path.glob("*.tar"), key=lambda shard: _naturally(shard.name)))
        return TarImages(shards) if shards else FolderImages.below(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; give a folder of images, or a parquet, zip or tar file of images")
    if path.suffix == ".zip":
        return ZipImages(path)
    return TarImages((path,)) if ".tar" in path.suffixes[-2:] else ParquetImages(path)


def _naturally(name: str) -> tuple[tuple[str | int, ...], ...]:
    return natural(PurePosixPath(name))


def _is_image(inside: PurePosixPath | Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    return inside.suffix.lower() in SUFFIXES and inside.name != CONTACT_SHEET and not hidden


def _tar_content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member) if member.size <= _MAX_BYTES else None
    return stream.read() if stream else b""


def _class_number(content: bytes) -> int | None:
    return int(content) if content.strip().isdigit() else None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
