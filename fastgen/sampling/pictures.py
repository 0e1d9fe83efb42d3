"""Images to look at: lossless files, grids and labelled rows. Everything takes floats in [0, 1]."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.utils import make_grid

from ..data.pixels import to_uint8

_FRAME = 62  # milliseconds of a video's frame: 16 per second
_GAP = 2  # white pixels between the images of a grid
_LABEL_SIZE = 16  # points
_LABEL_MARGIN = 12  # pixels around a label


def picture(image: Tensor) -> Image.Image:
    """One image [1 or 3, H, W] in [0, 1] as grey or RGB: round(255 x)."""
    pixels = to_uint8(image).cpu()
    if len(pixels) == 1:
        return Image.fromarray(pixels[0].numpy())
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def image_name(index: int) -> str:
    """The file of image `index`: 00000.png, 00001.png ..."""
    return f"{index:05d}.png"


def save_images(images: Tensor, folder: Path, start: int = 0) -> list[Path]:
    """Write images [N, 1 or 3, H, W] in [0, 1] as lossless PNG files numbered from `start`.

    Videos [N, F, 1 or 3, H, W] are animations in the same format.
    """
    paths = [Path(folder) / image_name(start + i) for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        first, *later = map(picture, image if image.ndim == 4 else image[None])
        film: dict[str, Any] = {"save_all": True, "append_images": later, "duration": _FRAME} if later else {}
        first.save(path, **film)
    return paths


def magnified(images: Tensor, scale: int) -> Tensor:
    """Images [N, C, H, W] with every pixel repeated: [N, C, scale H, scale W]."""
    return images.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)


def grid(images: Tensor, columns: int) -> Image.Image:
    """Images [N, 1 or 3, H, W] in [0, 1], row by row on white."""
    return picture(make_grid(images.cpu(), nrow=columns, padding=_GAP, pad_value=1.0))


def labelled_rows(rows: Mapping[str, Tensor], scale: int) -> Image.Image:
    """Rows of images [N, 1 or 3, H, W] in [0, 1], each magnified `scale` times, its label on the left."""
    font = ImageFont.load_default(_LABEL_SIZE)
    strips = {label: grid(magnified(images, scale), len(images)) for label, images in rows.items()}
    left = round(max(font.getlength(label) for label in rows)) + 2 * _LABEL_MARGIN
    width = left + max(strip.width for strip in strips.values())
    height = sum(max(strip.height, _LABEL_SIZE + _LABEL_MARGIN) for strip in strips.values())
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for label, strip in strips.items():
        row_height = max(strip.height, _LABEL_SIZE + _LABEL_MARGIN)
        canvas.paste(strip, (left, top + (row_height - strip.height) // 2))
        draw.text((_LABEL_MARGIN, top + row_height // 2), label, fill="black", font=font, anchor="lm")
        top += row_height
    return canvas
