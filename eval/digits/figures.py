"""The digits protocol: figures for 8x8 handwritten digits that need no network and no download.

Real images are the 1,797 of scikit-learn's `load_digits`, divided by 16. Three figures per image set:

- frechet: Frechet distance between Gaussian fits of the 64 pixels, sample covariances (divided by N - 1).
- accuracy: share of images that a 5-nearest-neighbour classifier fitted on the real digits reads as asked.
- diversity: mean over classes c and pixels p of the sample standard deviation (divided by N_c - 1) of pixel p
  among images asked to be c, over the same mean of the real digits. 1 is as varied as real, 0 is collapsed.
"""

from dataclasses import dataclass
from functools import cache

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ..measures.frechet import Moments, Statistics, frechet_distance
from ..rows import ClassRow

CLASSES = 10
PIXELS = 64
NEIGHBOURS = 5


@dataclass(frozen=True)
class DigitsFigures:
    """Frechet distance (0 is best), accuracy in [0, 1], diversity as a ratio to real (1 is real)."""

    frechet: float
    accuracy: float
    diversity: float


@dataclass(frozen=True, eq=False)
class LabelledDigits:
    """Digits and what they are, or were asked to be.

    Attributes:
        images: float64 [N, 64] in [0, 1], rows of an 8x8 image.
        labels: int64 [N], 0 .. 9, each at least twice.

    Raises:
        ValueError: a shape, a value or a label count is not as said.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 2 or self.images.shape[1] != PIXELS or len(self.images) != len(self.labels):
            raise ValueError(f"digits need images [N, 64] and labels [N], not {self.images.shape}, {self.labels.shape}")
        if not bool(((self.images >= 0) & (self.images <= 1)).all()):
            raise ValueError("digits must be finite and lie in [0, 1]; map the samples there first")
        counts = torch.bincount(self.labels, minlength=CLASSES)
        if len(counts) > CLASSES or int(counts.min()) < 2:
            raise ValueError(f"digits need the labels 0 .. 9, each at least twice; counts are {counts.tolist()}")


def class_balanced_labels(n: int) -> Tensor:
    """The labels 0 .. 9 in turn, int64 [n]."""
    return torch.arange(n) % CLASSES


@cache
def real_digits() -> LabelledDigits:
    """All 1,797 real digits."""
    data = load_digits()
    return LabelledDigits(torch.from_numpy(data.data) / 16, torch.from_numpy(data.target).long())


def digits_figures(images: Tensor, labels: Tensor) -> DigitsFigures:
    """The figures of generated digits, float [N, 64] in [0, 1], asked for as `labels` [N], against all real ones.

    Raises:
        ValueError: see `LabelledDigits`.
    """
    return compare(LabelledDigits(images.detach().cpu().double(), labels.cpu()), real_digits())


def real_halves(seed: int) -> DigitsFigures:
    """The figures of a random half of the real digits against the other half: what a perfect model would get.

    Halves are stratified by class. With about 900 instead of 1,797 real images on the other side, the distance is
    biased upwards (about as 1 / N), so a good model can lie below it.
    """
    real = real_digits()
    first, second = train_test_split(
        torch.arange(len(real.labels)).numpy(), test_size=0.5, random_state=seed, stratify=real.labels.numpy()
    )
    halves = [LabelledDigits(real.images[part], real.labels[part]) for part in (first, second)]
    return compare(halves[0], halves[1])


def compare(sample: LabelledDigits, real: LabelledDigits) -> DigitsFigures:
    """The figures of `sample` with `real` as the reference, the classifier's training set and the unit of variety."""
    return DigitsFigures(
        frechet=frechet_distance(_statistics(sample), _statistics(real)),
        accuracy=float(_read_as_asked(sample, real).mean()),
        diversity=float(_variety(sample).mean() / _variety(real).mean()),
    )


def figures_by_class(images: Tensor, labels: Tensor) -> tuple[ClassRow, ...]:
    """Accuracy and diversity of generated digits, as `digits_figures` takes them, for each class asked for."""
    sample, real = LabelledDigits(images.detach().cpu().double(), labels.cpu()), real_digits()
    right, ratios = _read_as_asked(sample, real), _variety(sample) / _variety(real)
    asked = [sample.labels == label for label in range(CLASSES)]
    return tuple(
        ClassRow(label, str(label), int(own.sum()), float(right[own].mean()), float(ratios[label]))
        for label, own in enumerate(asked)
    )


def _statistics(digits: LabelledDigits) -> Statistics:
    moments = Moments.zeros(PIXELS)
    moments.update(digits.images)
    return moments.statistics("64 pixels of 8x8 digits")


def _read_as_asked(sample: LabelledDigits, real: LabelledDigits) -> Tensor:
    """float64 [N]: 1 where the classifier fitted on `real` reads what was asked for, else 0."""
    reader = KNeighborsClassifier(n_neighbors=NEIGHBOURS).fit(real.images.numpy(), real.labels.numpy())
    return (torch.from_numpy(reader.predict(sample.images.numpy())) == sample.labels).double()


def _variety(digits: LabelledDigits) -> Tensor:
    """Standard deviation of a pixel within each class, mean over pixels: float64 [10]."""
    return torch.stack([digits.images[digits.labels == label].std(0).mean() for label in range(CLASSES)])
