"""Image files for tests: noise in any size and format, and the exact pixels to expect of it.

`from encoded import save` works in every test, because pytest puts the folder of a test file on the path.
"""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image


def noise_image(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(image: Image.Image) -> torch.Tensor:
    """uint8 [C, H, W]."""
    array = np.array(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).transpose(2, 0, 1).copy())


def bytes_of(images: torch.Tensor) -> torch.Tensor:
    """The uint8 pixels behind images in [-1, 1]."""
    return ((images + 1) * 127.5).round().to(torch.uint8)


def save(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_bytes(content)
    return path
