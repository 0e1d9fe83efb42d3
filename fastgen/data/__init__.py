"""Where training images, labels and prompts come from."""

from .digits import Digits, from_canvas, to_canvas
from .folder import ImageFolder
from .loader import Loader
from .parquet import ParquetImages
from .prompts import Noise, PromptFile
from .source import Items, Source

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "folder": ImageFolder,
    "parquet": ParquetImages,
    "prompts": PromptFile,
    "noise": Noise,
}

__all__ = [
    "SOURCES",
    "Digits",
    "ImageFolder",
    "Items",
    "Loader",
    "Noise",
    "ParquetImages",
    "PromptFile",
    "Source",
    "from_canvas",
    "to_canvas",
]
