"""From uint8 images to what a vision model reads: resized and normalised floats."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor
from torch.nn import functional as F

from fastgen.errors import UserError

from .options import Colour, Kernel

FILE = "preprocessor_config.json"


@dataclass(frozen=True)
class Preprocess:
    """A way into a model, and the words that tell it from other ways.

    Attributes:
        apply: uint8 images [B, 3, H, W] -> float32 pixel values [B, 3, h, w] on the same device.
        identity: names every choice that moves a feature.
        resizes: whether images of any size become one size.
    """

    apply: Callable[[Tensor], Tensor]
    identity: str
    resizes: bool


@dataclass(frozen=True)
class Resize:
    """Squashes images to a square and normalises them: (x / 255 - mean) / std per channel.

    Attributes:
        size: side in pixels of what the model sees; the aspect ratio is not kept.
        mean, std: per RGB channel, in units of [0, 1] images.
        kernel: of the interpolation, which works on unrounded values.
        antialias: widen the kernel when shrinking.
    """

    size: int
    mean: Colour
    std: Colour
    kernel: Kernel = "bilinear"
    antialias: bool = False

    @classmethod
    def to_range(cls, size: int, low: float, high: float, *, kernel: Kernel, antialias: bool) -> "Resize":
        """The normalisation that maps black to `low` and white to `high`."""
        mean, std = -low / (high - low), 1 / (high - low)
        return cls(size, (mean, mean, mean), (std, std, std), kernel=kernel, antialias=antialias)

    @property
    def preprocess(self) -> Preprocess:
        mean, std = (" ".join(f"{value:g}" for value in values) for values in (self.mean, self.std))
        kernel = f"{self.kernel} {'antialiased' if self.antialias else 'plain'}"
        return Preprocess(self._apply, f"{kernel} {self.size} px, mean {mean}, std {std}", resizes=True)

    def _apply(self, images: Tensor) -> Tensor:
        side = (self.size, self.size)
        pixels = images.float() / 255
        if images.shape[-2:] != side:
            pixels = F.interpolate(pixels, side, mode=self.kernel, align_corners=False, antialias=self.antialias)
        mean, std = (pixels.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (pixels - mean) / std


def preprocess_for(folder: Path, resize: Resize | None) -> Preprocess:
    """The preprocessing that `folder` declares in preprocessor_config.json, otherwise `resize`.

    Raises:
        UserError: both are there, neither is, or the file does not describe an image processor.
    """
    declared = (folder / FILE).is_file()
    if declared and resize is not None:
        raise UserError(
            f"Extractor {folder} brings its own {FILE}, so preprocessing options would contradict it; leave "
            "the --extractor-... options out, or remove that file from a copy of the folder."
        )
    if declared:
        return _declared(folder)
    if resize is None:
        raise UserError(
            f"Extractor {folder} has no {FILE}, so how its images are made must be said: give --extractor-size "
            "and either --extractor-range LOW HIGH or --extractor-mean and --extractor-std."
        )
    return resize.preprocess


def _declared(folder: Path) -> Preprocess:
    from transformers import AutoImageProcessor

    build: Callable[..., Any] = AutoImageProcessor.from_pretrained
    try:
        processor = build(folder, backend="torchvision", local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / FILE} does not describe an image processor that transformers can build ({error}); copy it "
            "again from where the model was published."
        ) from error

    def apply(images: Tensor) -> Tensor:
        made = processor(images=images, input_data_format="channels_first", return_tensors="pt")
        return cast(Tensor, made["pixel_values"])

    digest = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()[:12]
    return Preprocess(apply, f"{FILE} {digest}", resizes=bool(processor.do_resize))
