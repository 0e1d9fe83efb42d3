"""What a metric is: a row under measurement and what it is measured against, to figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .collect import Seen
from .measures.figure import Figure, NotMeasured
from .measures.frechet import Statistics, Target
from .metrics_json import About

Figures = Mapping[str, Figure | NotMeasured]
"""By name, or why one of several is missing."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """A row under measurement and what it is measured against.

    Attributes:
        statistics: statistics of the row's features.
        target: statistics of the real images' features.
        real: the real images; of a statistics file, at most their pixels.
        teacher: figures of the first teacher row; empty before it.
        classes: class names of the extractor.
    """

    seen: Seen
    statistics: Statistics
    target: Target
    real: Seen | None
    teacher: Mapping[str, Figure]
    classes: Sequence[str]
    device: torch.device
    seed: int

    def column(self, name: str) -> Tensor:
        """Rows [N, ...] of the measured images on the device of the evaluation."""
        if name not in self.seen.columns:
            raise NotMeasured(MISSING[name])
        return self.seen.columns[name].to(self.device)

    def real_column(self, name: str) -> Tensor:
        if self.real is None or name not in self.real.columns:
            raise NotMeasured(f"of the real images: {MISSING[name]}")
        return self.real.columns[name].to(self.device)


MISSING = {
    "features": "features are not stored in a statistics file; give the images",
    "logits": "the extractor has no classifier",
    "labels": "the images have no class labels",
    "conditions": "it is not known which images were asked for alike",
    "colour": "their pixels are not there; give --real-images beside a statistics file",
    "lpips": "it needs AlexNet's weights; give --lpips and the images",
    "embedding": "it needs a CLIP model; give --clip and the images",
    "alignment": "it needs a CLIP model and the prompts of these images; give --clip, and --prompts or a manifest",
}


@dataclass(frozen=True)
class Metric:
    """A measurement.

    Attributes:
        figures: what it gives.
        columns: what has to be collected for it, from the images measured and the real ones.
        measure: figures by name; NotMeasured, raised for all or in the place of one, says why not.
        against_real: whether it compares with the real images, so that these have no such figure themselves.
        default: whether it is measured unless --metrics names others.
    """

    name: str
    figures: Mapping[str, About]
    columns: tuple[str, ...]
    measure: Callable[[Comparison], Figures]
    against_real: bool = True
    default: bool = True
