"""Where training images, labels and prompts come from."""

from ..plugins import Kinds
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

SOURCE_KINDS = Kinds[Source](
    "source",
    SOURCES,
    group="fastgen.sources",
    members=("has_images", "num_classes", "prompts", "check", "items", "__len__"),
)

__all__ = [
    "SOURCES",
    "SOURCE_KINDS",
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
