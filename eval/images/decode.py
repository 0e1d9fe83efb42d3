"""Encoded images to batches of uint8 tensors, pixel for pixel as they were saved, decoded by workers."""

import sys
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from hashlib import sha256
from io import BytesIO
from itertools import islice
from multiprocessing import get_context
from multiprocessing.context import BaseContext

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from fastgen.data.decode import FORMATS, eight_bit, reason_of, refuse_unusable
from fastgen.errors import SilentError, UserError
from fastgen.limits import Cap

from ..rows import Skipped
from .encoded import EncodedImage, ImageSet

CHUNK = 16
"""Images that a worker decodes at a time."""

MANY = 4096
"""Images from which on workers are processes: threads decode small images no faster than one of them."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class ImageBatch:
    """Images of one size.

    Attributes:
        images: uint8 RGB [B, 3, H, W], or what the protocol looks at instead.
        labels: int64 [B], or None where the source has none.
        prompts: what the images were asked for, or None.
        conditions: int64 [B], which prompt or class that was by number; equal for equal ones. None if unknown.
        numbers: the images' numbers in their source; None where they follow each other without a gap.
        flags: what its pipeline's checkers raised on each image; empty where no image has any.
    """

    images: Tensor
    labels: Tensor | None
    prompts: tuple[str, ...] | None = None
    conditions: Tensor | None = None
    numbers: tuple[int, ...] | None = None
    flags: tuple[tuple[str, ...], ...] = ()

    def only(self, places: Sequence[int]) -> "ImageBatch":
        """Some of the images, by their places in the batch."""
        which = torch.tensor(places)
        return ImageBatch(
            images=self.images[which],
            labels=None if self.labels is None else self.labels[which],
            prompts=None if self.prompts is None else tuple(self.prompts[place] for place in places),
            conditions=None if self.conditions is None else self.conditions[which],
            numbers=None if self.numbers is None else tuple(self.numbers[place] for place in places),
        )

    def asked_for(self, prompts: tuple[str, ...]) -> "ImageBatch":
        """The same images with what each was asked for."""
        return replace(self, prompts=prompts, conditions=torch.tensor(list(map(_condition, prompts))))


@dataclass(frozen=True)
class Reading:
    """How image files are read.

    Attributes:
        mixed_sizes: a batch ends where the size changes; otherwise a second size is refused.
        skip_bad: leave out images that cannot be read or have another size, and note them in `skipped`.
        workers: decoding threads, of many images decoding processes.
        patience_s: seconds that they are waited for.
    """

    batch_size: int = 64
    mixed_sizes: bool = False
    skip_bad: bool = False
    workers: int = 4
    patience_s: float = 300.0
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
    batch: list[_Decoded] = []
    for one in _decoded(images, reading, share):
        size = one.pixels.shape
        if shape is not None and size != shape and not reading.mixed_sizes:
            _refuse(reading, one.image.name, _second_size(one.image.name, size, shape))
            continue
        if batch and (len(batch) == reading.batch_size or size != shape):
            yield _batch(batch)
            batch = []
        shape = size
        batch.append(one)
    if batch:
        yield _batch(batch)


def decode(image: EncodedImage) -> Tensor:
    """The pixels as uint8 RGB [3, H, W], upright (EXIF).

    Transparency is composed over white, grey repeated, 16-bit greys keep their upper 8 bits, of an animation
    the middle frame counts, as of a pipeline's video.

    Raises:
        UserError: empty, damaged, not an image, or a bomb (see `fastgen.limits`).
    """
    return _tensor(_pixels(image))


def _pixels(image: EncodedImage) -> Pixels:
    """[H, W, 3]; see `decode`."""
    try:
        with Image.open(BytesIO(image.content), formats=tuple(FORMATS)) as opened:
            refuse_unusable(opened, len(image.content))
            middle = getattr(opened, "n_frames", 1) // 2
            Cap.FRAMES.check(middle * opened.width * opened.height, "it")
            opened.seek(middle)
            ImageOps.exif_transpose(opened, in_place=True)
            return np.array(eight_bit(opened, "RGB"))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... on bad bytes
        raise UserError(
            f"image {image.name} cannot be read ({len(image.content)} bytes: {reason_of(error)}); it must "
            f"be a whole image in one of the formats {', '.join(FORMATS)}. Replace it, take it out, or leave such "
            "images out with --skip-bad."
        ) from error


@dataclass(frozen=True, eq=False)
class _Decoded:
    """Image `number` of its set; pixels uint8 [3, H, W]."""

    number: int
    image: EncodedImage
    pixels: Tensor


_Chunk = tuple[list[tuple[int, EncodedImage]], "Future[list[Pixels | UserError]]"]


def _decoded(images: ImageSet, reading: Reading, share: range) -> Iterator[_Decoded]:
    """Images with their pixels in order, decoded in chunks by workers that stay two batches ahead."""
    numbered = zip(share, islice(images, share.start, share.stop), strict=False)
    ahead: deque[_Chunk] = deque()
    pool = _workers(reading, len(share))
    try:
        while chunk := list(islice(numbered, CHUNK)):
            ahead.append((chunk, pool.submit(_decode_all, [image for _, image in chunk])))
            if len(ahead) * CHUNK > 2 * reading.batch_size + CHUNK * reading.workers:
                yield from _results(*ahead[0], reading)
                ahead.popleft()
        while ahead:
            yield from _results(*ahead[0], reading)
            ahead.popleft()
    except BrokenExecutor as error:
        suspects = [image for pending, _ in ahead for _, image in pending]
        raise UserError(_killer(suspects)) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _killer(suspects: list[EncodedImage]) -> str:
    """What is known of the image whose decoding process was killed: they are decoded once more, one after the other."""
    with ProcessPoolExecutor(1, mp_context=_context()) as pool:
        for image in suspects:
            try:
                pool.submit(_decode_one, image).result()
            except BrokenExecutor:
                return (
                    f"image {image.name} ({len(image.content):,} bytes) ends the process that decodes it, perhaps for "
                    "lack of memory: take it out, or save it anew"
                )
    return (
        f"a decoding process was killed while images {suspects[0].name} to {suspects[-1].name} were decoded, which can "
        "be decoded one by one: perhaps for lack of memory; use fewer --workers"
    )


def _workers(reading: Reading, count: int) -> Executor:
    if count < MANY or reading.workers == 1:
        return ThreadPoolExecutor(reading.workers)
    return ProcessPoolExecutor(min(reading.workers, count // CHUNK), mp_context=_context())


def _context() -> BaseContext:
    return get_context("fork" if sys.platform == "linux" else "spawn")  # a fork imports nothing again


def _decode_all(chunk: list[EncodedImage]) -> list[Pixels | UserError]:
    """The pixels of each image, or why there are none."""
    return [_decode_one(image) for image in chunk]


def _decode_one(image: EncodedImage) -> Pixels | UserError:
    try:
        return _pixels(image)
    except UserError as error:
        return error


def _results(
    chunk: list[tuple[int, EncodedImage]], pixels: Future[list[Pixels | UserError]], reading: Reading
) -> Iterator[_Decoded]:
    done, _ = wait([pixels], timeout=reading.patience_s)
    if not done:
        raise SilentError(
            f"decoding the images {chunk[0][1].name} to {chunk[-1][1].name} has not come to an end in "
            f"{reading.patience_s:g} s: look after them, or take them out"
        )
    for (number, image), found in zip(chunk, pixels.result(), strict=True):
        if isinstance(found, UserError):
            _refuse(reading, image.name, found)
        else:
            yield _Decoded(number, image, _tensor(found))


def _tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _refuse(reading: Reading, name: str, error: UserError) -> None:
    if not reading.skip_bad:
        raise error
    reading.skipped.append(Skipped(name, str(error)))


def _second_size(name: str, shape: torch.Size, first: torch.Size) -> UserError:
    return UserError(
        f"image {name} has {shape[2]} x {shape[1]} pixels, those before it {first[2]} x {first[1]}; all images must "
        "have one size here. Crop or resize them alike first, or leave such images out with --skip-bad."
    )


def _batch(decoded: Sequence[_Decoded]) -> ImageBatch:
    images = [one.image for one in decoded]
    labels = [image.label for image in images if image.label is not None]
    prompts = tuple(image.prompt for image in images if image.prompt is not None)
    classes = torch.tensor(labels) if len(labels) == len(images) else None
    batch = ImageBatch(
        images=torch.stack([one.pixels for one in decoded]),
        labels=classes,
        conditions=classes,
        numbers=tuple(one.number for one in decoded),
        flags=tuple(image.flags for image in images) if any(image.flags for image in images) else (),
    )
    return batch.asked_for(prompts) if len(prompts) == len(images) else batch


def _condition(prompt: str) -> int:
    """A number that is the same for the same prompt in every batch, process and report."""
    return int.from_bytes(sha256(prompt.encode()).digest()[:8], signed=True)
