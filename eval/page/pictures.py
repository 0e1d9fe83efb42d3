"""Pictures inside the page, as data URIs."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from fastgen.errors import UserError
from fastgen.limits import plain

LARGEST = 384
"""Longer side in pixels up to which a picture is embedded as it is; larger ones are reduced to it."""

_COARSE = 128  # up to this side, pixels are shown as squares, not smoothed


@dataclass(frozen=True)
class Picture:
    """A picture and its words; without a URI these say why it cannot be shown.

    Attributes:
        uri: data:image/...
        width, height: size in pixels.
    """

    words: str
    uri: str | None = None
    width: int = 0
    height: int = 0

    @property
    def coarse(self) -> bool:
        """Whether it is so small that its pixels are to be seen."""
        return max(self.width, self.height) <= _COARSE


@dataclass(frozen=True)
class Pictures:
    """The image files of a report folder."""

    folder: Path

    def show(self, path: str, words: str) -> Picture:
        """The picture of a file, or that it is missing or unreadable.

        Raises:
            UserError: the path is no text, or leads out of the report folder.
        """
        file = self._inside(path)
        try:
            if not file.is_file():
                return Picture(f"{words}: picture is missing")
            return Picture(words, *embedded(file.read_bytes()))
        except (OSError, ValueError):
            return Picture(f"{words}: picture is unreadable")

    def _inside(self, path: str) -> Path:
        file = (self.folder / plain(path, "the path of a picture in the report")).resolve()
        if not file.is_relative_to(self.folder.resolve()):
            raise UserError(
                f"the picture {path!r} lies outside the report folder {self.folder}; only files inside it are "
                "embedded. Write the report again with python -m eval."
            )
        return file


def embedded(content: bytes, largest: int = LARGEST) -> tuple[str, int, int]:
    """The data URI, width and height of a picture file's content; one of more pixels on a side is reduced."""
    with Image.open(BytesIO(content)) as image:
        image.load()
        size, kind = image.size, (image.format or "png").lower()
        if max(size) > largest:
            content, size, kind = *_reduced(image, largest), "jpeg"
    return f"data:image/{kind};base64,{b64encode(content).decode()}", *size


def _reduced(image: Image.Image, largest: int) -> tuple[bytes, tuple[int, int]]:
    small = image.convert("RGB")
    small.thumbnail((largest, largest))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), small.size
