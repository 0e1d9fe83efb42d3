"""The figures of 8x8 handwritten digits, which need no network and no download.

Features are the 64 pixels in [0, 1]. The real digits are the reference, the classifier's training set and the unit of
variety:

- frechet: Frechet distance between Gaussian fits of the 64 pixels, sample covariances (divided by N - 1).
- accuracy: share of images that a 5-nearest-neighbour classifier fitted on the real digits reads as asked.
- diversity: mean over classes c and pixels p of the sample standard deviation (divided by N_c - 1) of pixel p
  among images asked to be c, over the same mean of the real digits. 1 is as varied as real, 0 is collapsed.
"""

import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ..comparison import Comparison, Figures, Metric
from ..measures.figure import Figure, NotMeasured
from ..metrics_json import About
from ..rows import ClassRow
from .images import CLASSES, NEIGHBOURS, LabelledDigits


def _frechet(side: Comparison) -> Figures:
    return {"frechet": Figure(side.target.distance(side.statistics))}


def _accuracy(side: Comparison) -> Figures:
    return {"accuracy": Figure(float(_read_as_asked(_sample(side), _real(side)).mean()))}


def _diversity(side: Comparison) -> Figures:
    return {"diversity": Figure(float(_variety(_sample(side)).mean() / _variety(_real(side)).mean()))}


METRICS: tuple[Metric, ...] = (
    Metric(
        "frechet",
        {"frechet": About("Frechet", "lower", paper="Heusel et al. 2017, 1706.08500, on pixels")},
        ("features",),
        _frechet,
    ),
    Metric("accuracy", {"accuracy": About("accuracy", "higher")}, ("features", "labels"), _accuracy),
    Metric("diversity", {"diversity": About("diversity", "one")}, ("features", "labels"), _diversity),
)


def by_class(side: Comparison) -> tuple[ClassRow, ...]:
    """Accuracy and diversity of the digits of each class.

    Raises:
        NotMeasured: of the real digits themselves, or of images without labels.
    """
    if side.seen is side.real:
        raise NotMeasured("they are what the others are held against")
    sample, real = _sample(side), _real(side)
    right, ratios = _read_as_asked(sample, real), _variety(sample) / _variety(real)
    asked = [sample.labels == label for label in range(CLASSES)]
    return tuple(
        ClassRow(label, str(label), int(own.sum()), float(right[own].mean()), float(ratios[label]))
        for label, own in enumerate(asked)
    )


def _sample(side: Comparison) -> LabelledDigits:
    return _labelled(side.column("features"), side.column("labels"))


def _real(side: Comparison) -> LabelledDigits:
    return _labelled(side.real_column("features"), side.real_column("labels"))


def _labelled(features: Tensor, labels: Tensor) -> LabelledDigits:
    """Raises NotMeasured unless each digit is there often enough to vary."""
    counts = torch.bincount(labels.cpu(), minlength=CLASSES)
    if len(counts) > CLASSES or int(counts.min()) < 2:
        raise NotMeasured(f"the labels must be 0 .. 9, each at least twice; they count {counts.tolist()}")
    return LabelledDigits(features.cpu().double(), labels.cpu())


def _read_as_asked(sample: LabelledDigits, real: LabelledDigits) -> Tensor:
    """float64 [N]: 1 where the classifier fitted on `real` reads what was asked for, else 0."""
    reader = KNeighborsClassifier(n_neighbors=NEIGHBOURS).fit(real.images.numpy(), real.labels.numpy())
    return (torch.from_numpy(reader.predict(sample.images.numpy())) == sample.labels).double()


def _variety(digits: LabelledDigits) -> Tensor:
    """Standard deviation of a pixel within each class, mean over pixels: float64 [10]."""
    return torch.stack([digits.images[digits.labels == label].std(0).mean() for label in range(CLASSES)])
