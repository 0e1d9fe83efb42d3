"""Pictures inside the page, as data URIs."""

from base64 import b64encode
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from PIL import Image

from fastgen.errors import UserError

from .markup import Markup, tag

LARGEST = 384
"""Longer side in pixels up to which a picture is embedded as it is; larger ones are reduced to it."""

_COARSE = 128  # up to this side, pixels are shown as squares, not smoothed


@dataclass(frozen=True)
class Pictures:
    """The image files of a report folder."""

    folder: Path

    def show(self, path: str | None, alt: str, **attributes: str) -> Markup:
        """An image element, or a box that says that the file is missing.

        Raises:
            UserError: the path leads out of the report folder.
        """
        file = None if path is None else self._inside(path)
        if file is None or not file.is_file():
            return _absent(f"{alt}: picture is missing")
        try:
            uri, (width, height) = _embedded(file)
        except (OSError, ValueError):
            return _absent(f"{alt}: picture is unreadable")
        kind = "coarse" if max(width, height) <= _COARSE else None
        return tag("img", src=uri, alt=alt, title=alt, width=width, height=height, class_=kind, **attributes)

    def _inside(self, path: str) -> Path:
        file = (self.folder / path).resolve()
        if not file.is_relative_to(self.folder.resolve()):
            raise UserError(
                f"The picture {path!r} lies outside the report folder {self.folder}; only files inside it are "
                "embedded. Write the report again with python -m eval."
            )
        return file


def _absent(text: str) -> Markup:
    return tag("span", text, class_="absent", role="img", aria_label=text)


def _embedded(file: Path) -> tuple[str, tuple[int, int]]:
    content = file.read_bytes()
    with Image.open(BytesIO(content)) as image:
        image.load()
        size, kind = image.size, (image.format or "png").lower()
        if max(size) > LARGEST:
            content, size, kind = *_reduced(image), "jpeg"
    return f"data:image/{kind};base64,{b64encode(content).decode()}", size


def _reduced(image: Image.Image) -> tuple[bytes, tuple[int, int]]:
    small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return buffer.getvalue(), small.size
