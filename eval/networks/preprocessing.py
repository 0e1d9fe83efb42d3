"""From uint8 images to what a vision model reads: resized and normalised floats."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import transformers
from torch import Tensor
from torch.nn import functional as F

from fastgen.errors import UserError
from fastgen.files import sha256_file

from ..options import Colour, Kernel, Options
from .weights import ALONE

FILES = ("preprocessor_config.json", "processor_config.json")


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
        mean, std: moments of each RGB channel, in units of [0, 1] images.
        kernel: kernel of the interpolation, which works on unrounded values.
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


def explicit_resize(options: Options) -> Resize | None:
    """The preprocessing that was spelled out on the command line, None when nothing was.

    Raises:
        UserError: it was spelled out in part, or twice.
    """
    size, span = options.extractor_size, options.extractor_range
    mean, std = options.extractor_mean, options.extractor_std
    kernel, antialias = options.extractor_kernel, options.extractor_antialias
    if not any((size, span, mean, std, antialias, kernel != "bilinear")):
        return None
    if size is not None and span is not None and mean is None and std is None:
        if span[0] >= span[1]:
            raise UserError(f"--extractor-range {span} is empty; give the value of black first, such as -1 1 or 0 1")
        return Resize.to_range(size, *span, kernel=kernel, antialias=antialias)
    if size is None or span is not None or mean is None or std is None:
        raise UserError(
            "the extractor's preprocessing needs --extractor-size together with either --extractor-range, or both "
            "--extractor-mean and --extractor-std"
        )
    if min(std) <= 0:
        raise UserError(f"--extractor-std {std} must be positive: images in [0, 1] are divided by it")
    return Resize(size, mean, std, kernel=kernel, antialias=antialias)


def preprocess_for(folder: Path, resize: Resize | None) -> Preprocess:
    """The preprocessing that `folder` declares in preprocessor_config.json, otherwise `resize`.

    Raises:
        UserError: both are there, neither is, or the file does not describe an image processor.
    """
    declared = next((folder / name for name in FILES if (folder / name).is_file()), None)
    if declared is not None and resize is not None:
        raise UserError(
            f"extractor {folder} brings its own {declared.name}, so preprocessing options would contradict it; leave "
            "the --extractor-... options out, or remove that file from a copy of the folder."
        )
    if declared is not None:
        return _declared(declared)
    if resize is None:
        raise UserError(
            f"extractor {folder} has no {FILES[0]}, so how its images are made must be said: give --extractor-size "
            "and either --extractor-range LOW HIGH or --extractor-mean and --extractor-std"
        )
    return resize.preprocess


def _declared(file: Path) -> Preprocess:
    build: Callable[..., Any] = transformers.AutoImageProcessor.from_pretrained
    try:
        processor = build(file.parent, backend="torchvision", **ALONE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} does not describe an image processor that transformers can build ({error}); copy it "
            "again from where the model was published"
        ) from error

    def apply(images: Tensor) -> Tensor:
        made = processor(images=images, input_data_format="channels_first", return_tensors="pt")
        return cast(Tensor, made["pixel_values"])

    digest = sha256_file(file)[:12]
    return Preprocess(apply, f"{file.name} {digest}", resizes=bool(processor.do_resize))
