"""Images from folders and parquet files as batches of uint8 tensors, pixel for pixel as they were saved."""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image, ImageOps
from torch import Tensor

from fastgen.data.decode import FORMATS, MAX_PIXELS, SUFFIXES
from fastgen.errors import UserError

CONTACT_SHEET = "grid.png"  # `fastgen sample` writes it beside the images


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of one size.

    Attributes:
        images: uint8 RGB [B, 3, H, W].
        labels: int64 [B], or None where the source has none.
    """

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class EncodedImage:
    """An image file's content, what error messages call it, and its label if it has one."""

    name: str
    content: bytes
    label: int | None


class ImageSet(Protocol):
    """A finite set of encoded images that can be read in order, again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[EncodedImage]: ...


@dataclass(frozen=True)
class FolderImages:
    """Image files below a folder in the order of their paths; hidden ones and a contact sheet do not count."""

    files: tuple[Path, ...]

    @classmethod
    def below(cls, folder: Path) -> "FolderImages":
        """Raises UserError for a folder without images."""
        kept = tuple(sorted(path for path in folder.rglob("*") if _counts(path, path.relative_to(folder))))
        if not kept:
            raise UserError(
                f"Folder {folder} holds no image ({' '.join(sorted(SUFFIXES))}) and no model_index.json; give a "
                "folder of images, a parquet file with an image column, or a pipeline folder."
            )
        return cls(kept)

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[EncodedImage]:
        for file in self.files:
            yield EncodedImage(str(file), file.read_bytes(), None)


@dataclass(frozen=True)
class ParquetImages:
    """Rows of a parquet file: `image` (bytes, or a struct with a field `bytes`) and integers `label`, if any."""

    file: Path

    def __post_init__(self) -> None:
        schema = self._open().schema_arrow
        if "image" not in schema.names or not _holds_bytes(schema.field("image").type):
            raise UserError(
                f"Parquet file {self.file} has no column `image` of bytes, or of a struct with `bytes`; its columns "
                f"are {', '.join(schema.names)}. Name the column of encoded images so."
            )
        if not len(self):
            raise UserError(f"Parquet file {self.file} has no rows; give one with at least one image.")

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
        return UserError(f"{self.file} cannot be read as a parquet file ({error}); copy or export it again.")


def open_images(path: Path) -> ImageSet:
    """The images at `path`: a folder or a parquet file.

    Raises:
        UserError: there is neither, or no image in it.
    """
    if path.is_dir():
        return FolderImages.below(path)
    if path.is_file():
        return ParquetImages(path)
    raise UserError(f"{path} does not exist; give a folder of images or a parquet file with an image column.")


def image_batches(
    images: ImageSet, batch_size: int, *, limit: int | None = None, mixed_sizes: bool = False
) -> Iterator[ImageBatch]:
    """Decodes the first `limit` images in order, `batch_size` at a time.

    Sizes are kept, never cropped or resized here. An extractor that resizes its input allows mixed sizes: with
    `mixed_sizes` a batch ends where the size changes. Otherwise a second size is refused.

    Raises:
        UserError: an image that cannot be read, or a second size; the message names the file or row.
    """
    shape: torch.Size | None = None
    pixels: list[Tensor] = []
    labels: list[int | None] = []
    for image in islice(images, limit):
        decoded = decode(image)
        if shape is not None and decoded.shape != shape and not mixed_sizes:
            raise UserError(
                f"Image {image.name} has {decoded.shape[2]} x {decoded.shape[1]} pixels, those before it "
                f"{shape[2]} x {shape[1]}; all images must have one size here. Crop or resize them alike first."
            )
        if pixels and (len(pixels) == batch_size or decoded.shape != shape):
            yield _batch(pixels, labels)
            pixels, labels = [], []
        shape = decoded.shape
        pixels.append(decoded)
        labels.append(image.label)
    if pixels:
        yield _batch(pixels, labels)


def decode(image: EncodedImage) -> Tensor:
    """The pixels as uint8 RGB [3, H, W], upright (EXIF).

    Transparency is composed over white, grey repeated, 16-bit greys keep their upper 8 bits, of an animation
    the first frame counts.

    Raises:
        UserError: empty, damaged, not an image, or more than `MAX_PIXELS` pixels (a decompression bomb).
    """
    try:
        with Image.open(BytesIO(image.content), formats=tuple(FORMATS)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} is more than {MAX_PIXELS:,} pixels")
            pixels = np.array(_rgb(ImageOps.exif_transpose(opened)))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... on bad bytes
        raise UserError(
            f"Image {image.name} cannot be read ({len(image.content)} bytes: {' '.join(str(error).split())}); it must "
            f"be a whole image in one of the formats {', '.join(FORMATS)}. Replace it or take it out."
        ) from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range, 8 or 16 bits are needed")
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _batch(pixels: list[Tensor], labels: list[int | None]) -> ImageBatch:
    known = [label for label in labels if label is not None]
    return ImageBatch(torch.stack(pixels), torch.tensor(known) if len(known) == len(labels) else None)


def _counts(path: Path, inside: Path) -> bool:
    hidden = any(part.startswith(".") for part in inside.parts)
    image = path.suffix.lower() in SUFFIXES and path.name != CONTACT_SHEET
    return image and not hidden and path.is_file()


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
