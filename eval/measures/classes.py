"""What a classifier reads: the Inception score, accuracy and the table by class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..rows import ClassRow
from .figure import Figure, NotMeasured
from .variety import pairwise_by_condition


def inception_score(logits: Tensor, *, seed: int, splits: int = 10) -> Figure:
    """exp of the mean KL divergence from p(y) to p(y | x) (Salimans et al. 2016, arXiv 1606.03498, section 4).

    Mean over `splits` parts of the images in seeded random order; the interval is 1.96 standard errors over them.

    Args:
        logits: [N, K].

    Raises:
        NotMeasured: fewer images than splits.
    """
    if len(logits) < splits:
        raise NotMeasured(f"its {splits} splits need as many images")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(seed)).to(logits.device)
    log_p = logits[order].double().log_softmax(1)
    scores = torch.stack([_exp_information(part) for part in log_p.chunk(splits)])
    value, error = float(scores.mean()), 1.96 * float(scores.std(correction=0)) / max(1, splits - 1) ** 0.5
    return Figure(value, value - error, value + error, {"splits": splits, "seed": seed})


def accuracy(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> Figure:
    """Share of images [N] that are read as labelled, with the 95 % Wilson interval of a share.

    Raises:
        NotMeasured: the labels do not run over exactly the classifier's classes.
    """
    asked = labels.unique().tolist()
    if asked != list(range(len(classes))):
        raise NotMeasured(
            f"the labels take {len(asked)} values from {asked[0]} to {asked[-1]}, the extractor's classifier has "
            f"{len(classes)} classes"
        )
    hits, n, z = int((logits.argmax(1).cpu() == labels).sum()), len(labels), 1.96
    share = hits / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / (1 + z * z / n)
    return Figure(share, centre - half, centre + half)


def per_class(
    labels: Tensor, features: Tensor | None, logits: Tensor | None, classes: Sequence[str]
) -> tuple[ClassRow, ...]:
    """The images by the class that was asked for; names are those of the extractor where the classes agree."""
    values, counts = labels.unique(return_counts=True)
    same = values.tolist() == list(range(len(classes)))
    spread = {} if features is None else pairwise_by_condition(features, labels)
    right = logits.argmax(1).cpu() == labels if logits is not None and same else None
    return tuple(
        ClassRow(
            label=label,
            name=classes[label] if same else str(label),
            num=count,
            accuracy=None if right is None else float(right[labels == label].double().mean()),
            diversity=spread.get(label),
        )
        for label, count in zip(values.tolist(), counts.tolist(), strict=True)
    )


def _exp_information(log_p: Tensor) -> Tensor:
    marginal = log_p.exp().mean(0).log()
    return (log_p.exp() * (log_p - marginal)).nansum(1).mean().exp()
