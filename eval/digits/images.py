"""The real handwritten digits of scikit-learn's `load_digits`, and how digits are looked at: as their 64 pixels."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from fastgen.data.digits import CANVAS, SIDE, from_canvas
from fastgen.errors import UserError

from ..images.decode import ImageBatch
from ..images.sources import Picture
from ..networks.extractors import Sight
from ..rows import Origin, Skipped

CLASSES = 10
PIXELS = SIDE * SIDE
NEIGHBOURS = 5


@dataclass(frozen=True, eq=False)
class LabelledDigits:
    """Digits and what they are.

    Attributes:
        images: float64 [N, 64] in [0, 1], rows of an 8x8 image.
        labels: int64 [N], 0 .. 9.
    """

    images: Tensor
    labels: Tensor


@cache
def real_digits() -> LabelledDigits:
    """All 1,797 real digits: multiples of 1/16."""
    data = load_digits()
    return LabelledDigits(torch.from_numpy(data.data) / 16, torch.from_numpy(data.target).long())


@dataclass(frozen=True, eq=False)
class RealDigits:
    """Real digits as a source of images, in their own order.

    Attributes:
        places: which of them; None is all.
        path: what a report calls them.
    """

    places: tuple[int, ...] | None = None
    path: str = "scikit-learn load_digits"
    steps: None = None
    costs: None = None
    skipped: tuple[Skipped, ...] = ()

    @property
    def origin(self) -> Origin:
        return Origin(self.path, "images")

    @property
    def digits(self) -> LabelledDigits:
        real = real_digits()
        chosen = torch.arange(len(real.labels)) if self.places is None else torch.tensor(self.places)
        return LabelledDigits(real.images[chosen], real.labels[chosen])

    @property
    def total(self) -> int:
        return len(self.digits.labels)

    def batches(self, share: range) -> Iterator[ImageBatch]:
        images, labels = self._images[share.start : share.stop], self.digits.labels[share.start : share.stop]
        yield ImageBatch(images, labels, conditions=labels, numbers=tuple(share))

    def pictures(self, unread: Container[str]) -> Iterator[Picture]:
        for image in self._images:
            yield partial(torch.clone, image)

    @property
    def _images(self) -> Tensor:
        return self.digits.images.float().reshape(-1, 1, SIDE, SIDE)


def real_halves(seed: int) -> tuple[RealDigits, RealDigits]:
    """Two random halves of the real digits, stratified by class."""
    labels = real_digits().labels.numpy()
    halves = train_test_split(range(len(labels)), test_size=0.5, random_state=seed, stratify=labels)
    first, second = (RealDigits(tuple(half), f"{RealDigits.path}, a half by seed {seed}") for half in halves)
    return first, second


class DigitPixels:
    """The pixels of digits as features: there is no network.

    Args:
        device: device that features are computed on.
    """

    identity = f"{PIXELS} pixels of 8x8 digits; {NEIGHBOURS} nearest neighbours read them"
    dim = PIXELS
    resizes = False
    classes: Sequence[str] = tuple(map(str, range(CLASSES)))

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def see(self, images: Tensor) -> Sight:
        """The pixels as features, of digits or of canvases; no logits."""
        return Sight(self(images), None)

    def __call__(self, images: Tensor) -> Tensor:
        """[B, C, 8, 8] or [B, C, 16, 16], uint8 or in [0, 1] -> float32 [B, 64] in [0, 1].

        Raises:
            UserError: images of another size.
        """
        sized = images.to(self.device).float() / (1 if images.is_floating_point() else 255)
        grey = sized.mean(dim=1, keepdim=True)
        if grey.shape[-2:] == (CANVAS, CANVAS):
            grey = digits_on(grey)
        if grey.shape[-2:] != (SIDE, SIDE):
            raise UserError(
                f"the protocol digits looks at images of {SIDE} x {SIDE} pixels, or of {CANVAS} x {CANVAS} that such "
                f"digits were enlarged to, not of {images.shape[-1]} x {images.shape[-2]}: choose another protocol"
            )
        return grey.flatten(1)


def digits_on(canvases: Tensor) -> Tensor:
    """The digits [B, 1, 8, 8] in [0, 1] on canvases [B, 1, 16, 16], whose values beyond [0, 1] count in the fit."""
    return from_canvas(2 * canvases - 1).reshape(-1, 1, SIDE, SIDE)


def check_canvas(shape: Sequence[int], classes: int) -> None:
    """Raises UserError for samples that are no digits on a canvas, with ten classes."""
    if tuple(shape) != (1, CANVAS, CANVAS) or classes != CLASSES:
        raise UserError(
            f"evaluate.protocol is digits, but the teacher's samples are {tuple(shape)} with {classes} classes, not "
            f"digits on a canvas of {CANVAS} x {CANVAS}: choose another protocol, such as domain"
        )
