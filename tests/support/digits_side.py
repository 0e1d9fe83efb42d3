"""Digits as a row of a report sees them."""

from contextlib import AbstractContextManager
from unittest import mock

import torch
from torch import Tensor

from eval.collect import Collector, Seen
from eval.columns import Eyes
from eval.comparison import Comparison
from eval.digits import images as digits_images
from eval.digits.figures import METRICS
from eval.digits.images import DigitPixels, LabelledDigits, RealDigits, real_digits
from eval.images.decode import ImageBatch
from eval.measure import figures_of
from eval.measures.frechet import Target

FEW = 200


def few_real_digits() -> AbstractContextManager[object]:
    """Within, the first `FEW` real digits are all there are, and reports draw as many of every row."""
    real = real_digits()
    few = LabelledDigits(real.images[:FEW], real.labels[:FEW])
    return mock.patch.object(digits_images, "real_digits", return_value=few)


PIXELS = DigitPixels(torch.device("cpu"))


def seen(images: Tensor, labels: Tensor) -> Seen:
    collector = Collector(Eyes(PIXELS), frozenset({"features", "labels"}), first=0, pictures=0, seed=0)
    collector.update(ImageBatch(images.reshape(-1, 1, 8, 8).float(), labels))
    return collector.seen(())


def side_of(images: Tensor, labels: Tensor, real: RealDigits | None = None) -> Comparison:
    """Digits [N, 64] asked to be the labels, against all real ones or some."""
    sample, digits = seen(images, labels), (real or RealDigits()).digits
    base = seen(digits.images, digits.labels)
    target = Target.of(base.moments.statistics("digits"))
    statistics = sample.moments.statistics("digits")
    return Comparison(sample, statistics, target, base, {}, PIXELS.classes, PIXELS.device, 0)


def digits_figures(images: Tensor, labels: Tensor, real: RealDigits | None = None) -> dict[str, float]:
    """The figures of digits; one that is missing raises."""
    figures, missing = figures_of(METRICS, side_of(images, labels, real))
    assert not missing, missing
    return {name: figure.value for name, figure in figures.items()}
