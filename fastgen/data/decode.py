"""Encoded image files -> uint8 pixels of one size, whatever users put into such files."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from ..errors import UserError
from ..limits import Cap, check_ratio

Pixels = NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width in pixels."""

FORMATS = {  # PIL would run Ghostscript on an EPS file, whatever its suffix; hence an explicit list
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
_ORIENTATION, _SIDEWAYS = 274, 5  # the EXIF tag, and its first value that swaps height and width
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def decode(encoded: Path | BytesIO, name: str, *, size: Size, channels: int, background: str = "white") -> Pixels:
    """The image as uint8 [channels, height, width]: upright (EXIF), its middle cut out in the shape of `size`, resized.

    Resampling is Lanczos with antialiasing; an image that already has `size` keeps its pixels exactly.
    16-bit greys keep their upper 8 bits, of an animation the first frame counts.

    Args:
        encoded: the file, or its content.
        name: what error messages call it.
        size: height and width of the result in pixels.
        channels: 3 for RGB, 1 for grey.
        background: colour that transparency is composed over.

    Raises:
        UserError: not an image, truncated, a bomb (see `limits`), or 32-bit pixels.
    """
    with _opened(encoded, name) as image:
        ImageOps.exif_transpose(image, in_place=True)
        shaped = eight_bit(_middle(image, size), "L" if channels == 1 else "RGB", background)
        pixels = np.asarray(shaped.resize(size[::-1], Image.Resampling.LANCZOS))
    return np.ascontiguousarray(pixels.reshape(*size, channels).transpose(2, 0, 1))


def size_of(encoded: Path | BytesIO, name: str) -> Size:
    """Height and width of an image as it is seen (EXIF), from its header alone.

    Raises:
        UserError: not an image, or a bomb.
    """
    with _opened(encoded, name) as image:
        turned = image.getexif().get(_ORIENTATION, 1) >= _SIDEWAYS
        return (image.width, image.height) if turned else (image.height, image.width)


def colour_of(background: str) -> tuple[int, ...]:
    """A colour by its name or as #rrggbb; raises UserError for another text."""
    try:
        return ImageColor.getrgb(background)
    except ValueError as error:
        raise UserError(
            f"background is {background!r}, which is no colour: give a name such as white, or #rrggbb"
        ) from error


@contextmanager
def _opened(encoded: Path | BytesIO, name: str) -> Iterator[Image.Image]:
    """Within, an image that may be decoded; all that goes wrong there is a UserError of its name."""
    try:
        with Image.open(encoded, formats=tuple(FORMATS)) as image:
            refuse_unusable(image, encoded.stat().st_size if isinstance(encoded, Path) else encoded.getbuffer().nbytes)
            yield image
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... on bad bytes
        raise UserError(
            f"image {name} cannot be read ({reason_of(error)}); every item must be a complete image in one "
            f"of the formats {', '.join(FORMATS)}: replace it or take it out of the data set"
        ) from error


def refuse_unusable(image: Image.Image, packed: int) -> None:
    """Raises UserError or ValueError for an opened image of `packed` bytes that is not to be decoded."""
    size = f"{image.width} x {image.height}"
    Cap.PIXELS.check(image.width * image.height, size)
    check_ratio(image.width * image.height * len(image.getbands()), packed, size)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range, 8 or 16 bits are needed")


def eight_bit(image: Image.Image, mode: str, background: str = "white") -> Image.Image:
    """The image as L or RGB: transparency over a colour, of 16-bit greys the upper 8 bits."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert(mode)


def _middle(image: Image.Image, size: Size) -> Image.Image:
    """The largest part around the middle that has the shape of `size`."""
    height, width = size
    scale = min(image.height / height, image.width / width)
    across, down = (min(image.width, round(width * scale)), min(image.height, round(height * scale)))
    across, down = max(1, across), max(1, down)
    left, top = (image.width - across) // 2, (image.height - down) // 2
    return image.crop((left, top, left + across, top + down))


def reason_of(error: Exception) -> str:
    """Why an image could not be read, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return (str(error) or type(error).__name__).splitlines()[0]
