"""Protocols: frozen bundles of network, resize, figures and smallest N, under names that the literature uses.

Figures of two protocols are never compared: a protocol's name is part of the identity of every statistic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import torch

from fastgen.errors import UserError

from ..comparison import Comparison, Metric
from ..digits import figures as digits
from ..digits.images import DigitPixels, RealDigits, check_canvas, digits_on, real_halves
from ..images.sources import RealSource, View, eight_bit
from ..metrics import METRICS, by_class
from ..options import Options
from ..rows import ClassRow
from .clip import Clip
from .extractors import FeatureExtractor, TransformersExtractor
from .inception import Convention, InceptionExtractor
from .precision import Precision
from .preprocessing import Resize, explicit_resize, preprocess_for
from .weights import inception_file, model_folder

PUBLISHED = {"dinov2": "facebook/dinov2-large", "clip": "openai/clip-vit-large-patch14"}
"""Protocol -> its network's name on the hub."""
IMAGENET = Resize(224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), kernel="bicubic", antialias=True)


@dataclass(frozen=True)
class Protocol:
    """A way to turn images into features, and what is measured of them.

    Attributes:
        summary: one line for --help.
        build: (options, device) -> extractor.
        network: options -> the file or folder of its network, None where it has none; raises UserError if it is absent.
        min_images: number below which a distance is refused without --allow-small; None is the feature's dimension.
        metrics: the table of what can be measured.
        by_class: the table of a row's classes; raises NotMeasured where there is none.
        watched: figures that a run is watched by, the first one its Frechet distance.
        view: what is looked at of pictures in [0, 1].
        clipped: whether samples of a network are pictures only when they were clipped to [0, 1].
        check: raises UserError for samples of this shape and number of classes, if they cannot be looked at.
        own: real images that serve as reference where none is given.
        halves: seed -> two halves of these; what one has against the other is the floor.
    """

    summary: str
    build: Callable[[Options, torch.device], FeatureExtractor]
    network: Callable[[Options], Path | None] = lambda options: None
    min_images: int | None = None
    metrics: tuple[Metric, ...] = METRICS
    by_class: Callable[[Comparison], tuple[ClassRow, ...]] = by_class
    watched: tuple[str, ...] = ("fid", "kid")
    view: View = eight_bit
    clipped: bool = True
    check: Callable[[Sequence[int], int], None] = lambda shape, classes: None
    own: Callable[[], RealSource] | None = None
    halves: Callable[[int], tuple[RealSource, RealSource]] | None = None


def build_extractor(options: Options, device: torch.device) -> FeatureExtractor:
    """The extractor of the chosen protocol.

    Raises:
        UserError: weights are missing or unusable, or preprocessing options contradict a frozen protocol.
    """
    if options.protocol != "domain" and explicit_resize(options) is not None:
        raise UserError(
            f"the protocol {options.protocol} fixes how images are made; leave the preprocessing options out, or "
            "choose --protocol domain"
        )
    return PROTOCOLS[options.protocol].build(options, device)


def min_images(options: Options, dim: int) -> int:
    """Images below which a distance is mostly bias, or not what the literature reports."""
    return PROTOCOLS[options.protocol].min_images or dim


def precision_of(options: Options) -> Precision:
    """The precision of matrix products that the options ask for."""
    return "tf32" if options.fast else "float32"


def _domain(options: Options, device: torch.device) -> FeatureExtractor:
    folder = _folder(options)
    preprocess = preprocess_for(folder, explicit_resize(options))
    return TransformersExtractor(folder, preprocess, device=device, precision=precision_of(options))


def _dinov2(options: Options, device: torch.device) -> FeatureExtractor:
    return TransformersExtractor(_folder(options), IMAGENET.preprocess, device=device, precision=precision_of(options))


def _clip(options: Options, device: torch.device) -> FeatureExtractor:
    return Clip(_folder(options), device=device, precision=precision_of(options))


def _inception(options: Options, device: torch.device) -> FeatureExtractor:
    convention = cast(Convention, options.protocol)
    return InceptionExtractor(_weights(options), convention, device=device, precision=precision_of(options))


def _folder(options: Options) -> Path:
    return model_folder(options.extractor or PUBLISHED.get(options.protocol) or _required())


def _weights(options: Options) -> Path:
    return inception_file(options.extractor, options.extractor_sha256)


def _digits(options: Options, device: torch.device) -> FeatureExtractor:
    if options.extractor is not None:
        raise UserError(
            f"the protocol digits looks with no network, so that --extractor {options.extractor} changes nothing: "
            "leave it out, or choose --protocol domain"
        )
    return DigitPixels(device)


def _required() -> NoReturn:
    raise UserError(
        "the protocol domain needs --extractor: the folder of a transformers image model trained on images like "
        "yours. Published figures come from --protocol clean, edm, adm or dinov2."
    )


PROTOCOLS: Mapping[str, Protocol] = {
    "domain": Protocol("any transformers image model, --extractor FOLDER", _domain, _folder),
    "clean": Protocol("clean-fid: Inception, antialiased bicubic", _inception, _weights, min_images=10_000),
    "edm": Protocol("EDM: Inception, uint8, resize inside", _inception, _weights, min_images=50_000),
    "adm": Protocol("guided diffusion: as edm, its reference files", _inception, _weights, min_images=50_000),
    "dinov2": Protocol("DINOv2 class token, 224 px", _dinov2, _folder, min_images=10_000),
    "clip": Protocol("CLIP image embedding", _clip, _folder, min_images=10_000),
    "digits": Protocol(
        "8x8 handwritten digits, by their pixels",
        _digits,
        metrics=digits.METRICS,
        by_class=digits.by_class,
        watched=("frechet", "accuracy", "diversity"),
        view=digits_on,
        clipped=False,
        check=check_canvas,
        own=RealDigits,
        halves=real_halves,
    ),
}
