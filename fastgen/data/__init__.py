"""Where training images, labels and prompts come from."""

from ..plugins import Kinds
from .digits import Digits, from_canvas, to_canvas
from .folder import ImageFolder
from .hub import HubImages
from .loader import Loader
from .mixture import Mixture
from .parquet import ParquetImages
from .prompts import Noise, PromptFile
from .selection import Owned, Selection
from .shards import WebDataset
from .source import Items, Source

SOURCES: dict[str, type[Source]] = {
    "digits": Digits,
    "folder": ImageFolder,
    "parquet": ParquetImages,
    "datasets": HubImages,
    "webdataset": WebDataset,
    "prompts": PromptFile,
    "noise": Noise,
}

SOURCE_KINDS = Kinds[Source](
    "source",
    SOURCES,
    group="fastgen.sources",
    members=("has_images", "num_classes", "prompts", "check", "items", "__len__"),
    usual=Source,
)

__all__ = [
    "SOURCES",
    "SOURCE_KINDS",
    "Digits",
    "HubImages",
    "ImageFolder",
    "Items",
    "Loader",
    "Mixture",
    "Noise",
    "Owned",
    "ParquetImages",
    "PromptFile",
    "Selection",
    "Source",
    "WebDataset",
    "from_canvas",
    "to_canvas",
]
