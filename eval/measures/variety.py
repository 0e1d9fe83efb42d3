"""How varied a set of images is: pairwise distances under one condition, and the Vendi score."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .figure import Figure, NotMeasured

PER_CONDITION = 1000
"""Images of one condition whose pairs are compared; the first ones."""


def mean_pairwise_distance(features: Tensor, conditions: Tensor) -> Figure:
    """Mean Euclidean distance between two images of the same prompt or class, every condition weighing alike.

    The per-prompt form of the diversity of DMD2 and of Sadat et al. 2024 (CADS, arXiv 2310.17347); as a ratio to
    the teacher's it is 1 for a student that lost no variety. The interval is 1.96 standard errors over conditions.

    Args:
        features: [N, d].
        conditions: int64 [N], which prompt or class each image was asked for.

    Raises:
        NotMeasured: no condition has two images.
    """
    return _mean_over_conditions(list(pairwise_by_condition(features, conditions).values()))


def mean_pairwise_square(features: Tensor, conditions: Tensor) -> Figure:
    """Mean squared Euclidean distance between two images of the same prompt or class, otherwise as above.

    Over all pairs of n images it is 2 / (n - 1) times the sum of squares about their mean. Of the features of
    `eval.networks.lpips` it is the mean LPIPS.

    Raises:
        NotMeasured: no condition has two images.
    """
    groups = [features[conditions.to(features.device) == label] for label in conditions.unique().tolist()]
    return _mean_over_conditions([2 * float(rows.double().var(0).sum()) for rows in groups if len(rows) > 1])


def _mean_over_conditions(found: Sequence[float]) -> Figure:
    means = torch.tensor(found, dtype=torch.float64)
    if not len(means):
        raise NotMeasured("no prompt or class has two images; ask for more images than prompts")
    value = float(means.mean())
    if len(means) < 2:
        return Figure(value, details={"conditions": 1})
    error = 1.96 * float(means.std()) / len(means) ** 0.5
    return Figure(value, value - error, value + error, {"conditions": len(means)})


def pairwise_by_condition(features: Tensor, conditions: Tensor) -> dict[int, float]:
    """Mean distance between two images of each condition that has two."""
    where = conditions.to(features.device)
    groups = {label: features[where == label][:PER_CONDITION].double() for label in conditions.unique().tolist()}
    pairs = {label: len(rows) * (len(rows) - 1) for label, rows in groups.items() if len(rows) > 1}
    return {label: float(torch.cdist(groups[label], groups[label]).sum()) / count for label, count in pairs.items()}


def vendi_score(features: Tensor) -> Figure:
    """The effective number of different images (Friedman and Dieng 2023, arXiv 2210.02410, eq. 3-4).

    exp of the entropy of the eigenvalues of K / N, K the cosine similarities: 1 when all are alike, N when all
    are orthogonal. Compare at equal N only.

    Args:
        features: [N, d].
    """
    unit = torch.nn.functional.normalize(features.double())
    gram = unit.T @ unit if len(unit) > unit.shape[1] else unit @ unit.T
    shares = torch.linalg.eigvalsh(gram / len(unit)).clamp(min=0)
    return Figure(float(torch.special.entr(shares).sum().exp()), details={"images": len(features)})
