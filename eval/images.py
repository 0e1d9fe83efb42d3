"""Encoded images to batches of uint8 tensors, pixel for pixel as they were saved, decoded by workers."""

import sys
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from multiprocessing import get_context

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fastgen.data.decode import FORMATS, MAX_PIXELS
from fastgen.errors import UserError

from .imagesets import EncodedImage, ImageSet

CHUNK = 16
"""Images that a worker decodes at a time."""

MANY = 4096
"""Images from which on workers are processes: threads decode small images no faster than one of them."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of one size.

    Attributes:
        images: uint8 RGB [B, 3, H, W].
        labels: int64 [B], or None where the source has none.
        prompts: what the images were asked for, or None.
        conditions: int64 [B], which prompt or class that was by number; equal for equal ones. None if unknown.
    """

    images: Tensor
    labels: Tensor | None
    prompts: tuple[str, ...] | None = None
    conditions: Tensor | None = None


@dataclass(frozen=True)
class Skipped:
    """An image that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        mixed_sizes: a batch ends where the size changes; otherwise a second size is refused.
        skip_bad: leave out images that cannot be read or have another size, and note them in `skipped`.
        workers: decoding threads, of many images decoding processes.
    """

    batch_size: int = 64
    mixed_sizes: bool = False
    skip_bad: bool = False
    workers: int = 4
    skipped: list[Skipped] = field(default_factory=list, compare=False)


def image_batches(images: ImageSet, reading: Reading, share: range | None = None) -> Iterator[ImageBatch]:
    """Decodes the images numbered by `share` (None: all) in order; sizes are kept, never cropped or resized here.

    The next batch is made while the last one is looked at.

    Raises:
        UserError: an image that cannot be read, or a second size; the message names the file or row.
    """
    batches = _batches(images, reading, range(len(images)) if share is None else share)
    try:
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = thread.submit(next, batches, None)
                yield batch
    finally:
        batches.close()


def _batches(images: ImageSet, reading: Reading, share: range) -> Generator[ImageBatch, None, None]:
    shape: torch.Size | None = None
    pixels: list[Tensor] = []
    labels: list[int | None] = []
    for image, decoded in _decoded(images, reading, share):
        if shape is not None and decoded.shape != shape and not reading.mixed_sizes:
            _refuse(reading, image.name, _second_size(image.name, decoded.shape, shape))
            continue
        if pixels and (len(pixels) == reading.batch_size or decoded.shape != shape):
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
    return _tensor(_pixels(image))


def _pixels(image: EncodedImage) -> Pixels:
    """[H, W, 3]; see `decode`."""
    try:
        with Image.open(BytesIO(image.content), formats=tuple(FORMATS)) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise ValueError(f"{opened.width} x {opened.height} is more than {MAX_PIXELS:,} pixels")
            return np.array(_rgb(ImageOps.exif_transpose(opened)))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... on bad bytes
        raise UserError(
            f"Image {image.name} cannot be read ({len(image.content)} bytes: {' '.join(str(error).split())}); it must "
            f"be a whole image in one of the formats {', '.join(FORMATS)}. Replace it, take it out, or leave such "
            "images out with --skip-bad."
        ) from error


def _decoded(images: ImageSet, reading: Reading, share: range) -> Iterator[tuple[EncodedImage, Tensor]]:
    """Images with their pixels in order, decoded in chunks by workers that stay two batches ahead."""
    numbered = islice(images, share.start, share.stop)
    ahead: deque[tuple[list[EncodedImage], Future[list[Pixels | UserError]]]] = deque()
    with _workers(reading, len(share)) as pool:
        try:
            while chunk := list(islice(numbered, CHUNK)):
                ahead.append((chunk, pool.submit(_decode_all, chunk)))
                if len(ahead) * CHUNK > 2 * reading.batch_size + CHUNK * reading.workers:
                    yield from _results(*ahead.popleft(), reading)
            while ahead:
                yield from _results(*ahead.popleft(), reading)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _workers(reading: Reading, count: int) -> Executor:
    if count < MANY or reading.workers == 1:
        return ThreadPoolExecutor(reading.workers)
    context = get_context("fork" if sys.platform == "linux" else "spawn")  # a fork imports nothing again
    return ProcessPoolExecutor(min(reading.workers, count // CHUNK), mp_context=context)


def _decode_all(chunk: list[EncodedImage]) -> list[Pixels | UserError]:
    """The pixels of each image, or why there are none."""
    return [_decode_one(image) for image in chunk]


def _decode_one(image: EncodedImage) -> Pixels | UserError:
    try:
        return _pixels(image)
    except UserError as error:
        return error


def _results(
    chunk: list[EncodedImage], pixels: Future[list[Pixels | UserError]], reading: Reading
) -> Iterator[tuple[EncodedImage, Tensor]]:
    for image, found in zip(chunk, pixels.result(), strict=True):
        if isinstance(found, UserError):
            _refuse(reading, image.name, found)
        else:
            yield image, _tensor(found)


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _refuse(reading: Reading, name: str, error: UserError) -> None:
    if not reading.skip_bad:
        raise error
    reading.skipped.append(Skipped(name, str(error)))


def _second_size(name: str, shape: torch.Size, first: torch.Size) -> UserError:
    return UserError(
        f"Image {name} has {shape[2]} x {shape[1]} pixels, those before it {first[2]} x {first[1]}; all images must "
        "have one size here. Crop or resize them alike first, or leave such images out with --skip-bad."
    )


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
    numbers = torch.tensor(known) if len(known) == len(labels) else None
    return ImageBatch(torch.stack(pixels), numbers, conditions=numbers)
