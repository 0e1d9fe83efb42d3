"""Encoded image files -> square uint8 pixels, whatever users put into such files."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError
from ..limits import Cap, check_ratio

Pixels = NDArray[np.uint8]

FORMATS = {  # PIL would run Ghostscript on an EPS file, whatever its suffix; hence an explicit list
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)


def decode(encoded: Path | BytesIO, name: str, *, size: int, channels: int) -> Pixels:
    """The image as uint8 [channels, size, size]: upright (EXIF), centre-cropped to a square, then resized.

    Resampling is Lanczos with antialiasing; an image that already has `size` keeps its pixels exactly.
    Transparency is composed over white, 16-bit greys keep their upper 8 bits, of an animation the first
    frame counts.

    Args:
        encoded: the file, or its content.
        name: what error messages call it.
        size: side of the result in pixels.
        channels: 3 for RGB, 1 for grey.

    Raises:
        UserError: not an image, truncated, a bomb (see `limits`), or 32-bit pixels.
    """
    try:
        with Image.open(encoded, formats=tuple(FORMATS)) as image:
            refuse_unusable(image, encoded.stat().st_size if isinstance(encoded, Path) else encoded.getbuffer().nbytes)
            ImageOps.exif_transpose(image, in_place=True)
            square = eight_bit(_centre_square(image), "L" if channels == 1 else "RGB")
            pixels = np.asarray(square.resize((size, size), Image.Resampling.LANCZOS))
    except Exception as error:  # PIL raises OSError, SyntaxError, ValueError, struct.error ... on bad bytes
        raise UserError(
            f"image {name} cannot be read ({_reason(error)}); every item must be a complete image in one "
            f"of the formats {', '.join(FORMATS)}: replace it or take it out of the data set"
        ) from error
    return np.ascontiguousarray(pixels.reshape(size, size, channels).transpose(2, 0, 1))


def refuse_unusable(image: Image.Image, packed: int) -> None:
    """Raises UserError or ValueError for an opened image of `packed` bytes that is not to be decoded."""
    size = f"{image.width} x {image.height}"
    Cap.PIXELS.check(image.width * image.height, size)
    check_ratio(image.width * image.height * len(image.getbands()), packed, size)
    if image.mode in ("I", "F"):
        raise ValueError("32-bit pixels have no known range, 8 or 16 bits are needed")


def eight_bit(image: Image.Image, mode: str) -> Image.Image:
    """The image as L or RGB: transparency over white, of 16-bit greys the upper 8 bits."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert(mode)


def _centre_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    return (str(error) or type(error).__name__).splitlines()[0]
