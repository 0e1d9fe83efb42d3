"""One pass over an image set: features, spectrum and class accuracy; then two sets side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from fastgen.errors import UserError

from .extractors import FeatureExtractor, Sight
from .frechet import Moments, Statistics, frechet_distance
from .images import ImageBatch
from .spectrum import MIN_SIDE, Band, Spectrum, SpectrumMean, nyquist_peak, spectrum_db


@dataclass(frozen=True, eq=False)
class Observation:
    """What was seen of an image set.

    Attributes:
        statistics: of its features.
        spectrum: None when images differ in size or are small.
        accuracy: share that the extractor's classifier reads as labelled; None without labels or classifier, or
            when the labels do not run over exactly its classes.
    """

    statistics: Statistics
    spectrum: Spectrum | None
    accuracy: float | None


@dataclass(frozen=True)
class Figures:
    """An image set measured against real images; None is not measured.

    Attributes:
        num: images; None when a statistics file does not say.
        frechet: distance of feature distributions.
        accuracy: see `Observation`.
        bands: levels of the power spectrum.
        nyquist_peak: in dB.
    """

    num: int | None
    frechet: float | None
    accuracy: float | None
    bands: tuple[Band, ...] | None
    nyquist_peak: float | None


class Observer:
    """Takes in an image set batch by batch; memory does not grow with the number of images."""

    def __init__(self, extractor: FeatureExtractor) -> None:
        self._extractor = extractor
        self._moments = Moments.zeros(extractor.dim, device=extractor.device)
        self._sizes: set[torch.Size] = set()
        self._spectrum = SpectrumMean()
        self._read = _Reading(len(extractor.classes))

    def update(self, batch: ImageBatch) -> None:
        """Looks at a batch.

        Raises:
            UserError: features are not finite, or the device's memory is too small.
        """
        images = batch.images.to(self._extractor.device)
        sight = _see(self._extractor, images)
        self._moments.update(sight.features)
        self._read.update(sight.logits, batch.labels)
        self._sizes.add(images.shape[-2:])
        if self._has_spectrum:
            self._spectrum.update(images)

    def observation(self) -> Observation:
        return Observation(
            statistics=self._moments.statistics(self._extractor.identity),
            spectrum=self._spectrum.spectrum() if self._has_spectrum else None,
            accuracy=self._read.accuracy(),
        )

    @property
    def _has_spectrum(self) -> bool:
        return len(self._sizes) == 1 and all(min(size) >= MIN_SIDE for size in self._sizes)


class _Reading:
    """Running accuracy of a classifier on labelled images."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._hits = 0
        self._labels: list[Tensor] = []
        self._complete = classes > 0

    def update(self, logits: Tensor | None, labels: Tensor | None) -> None:
        if logits is None or labels is None:
            self._complete = False
            return
        self._hits += int((logits.argmax(1).cpu() == labels).sum())
        self._labels.append(labels)

    def accuracy(self) -> float | None:
        if not self._complete or not self._labels:
            return None
        labels = torch.cat(self._labels)
        same_classes = torch.unique(labels).tolist() == list(range(self._classes))
        return self._hits / len(labels) if same_classes else None


def observe(batches: Iterator[ImageBatch], extractor: FeatureExtractor, *, total: int, title: str) -> Observation:
    """Looks at every image once, with a progress bar of `total` images on a terminal.

    Raises:
        UserError: an image cannot be read; see also `Observer.update`.
    """
    observer = Observer(extractor)
    with tqdm(total=total, desc=title, unit="image", disable=None) as bar:
        for batch in batches:
            observer.update(batch)
            bar.update(len(batch.images))
    return observer.observation()


def compare(sample: Observation, real: Observation) -> Figures:
    """The figures of `sample`; its spectrum only if the real images have one, of the same size.

    Raises:
        UserError: the two were not seen by the same extractor.
    """
    level, base = sample.spectrum, real.spectrum
    bands = peak = None
    if level is not None and base is not None and level.power.shape == base.power.shape:
        bands, peak = spectrum_db(level, base), nyquist_peak(level, base)
    return Figures(
        num=sample.statistics.count,
        frechet=frechet_distance(sample.statistics, real.statistics),
        accuracy=sample.accuracy,
        bands=bands,
        nyquist_peak=peak,
    )


def _see(extractor: FeatureExtractor, images: Tensor) -> Sight:
    try:
        return extractor.see(images)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{extractor.device} has too little memory to look at {len(images)} images at once; choose a smaller "
            "--batch-size."
        ) from error
