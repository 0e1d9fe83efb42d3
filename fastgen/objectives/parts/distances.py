"""Distances between a sample and its target, each sample's own: [B, ...] -> [B] in the dtype of the samples."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ...unread import refuse_unread

DistanceName = Literal["l2", "l1", "huber", "pseudo_huber"]


def l2(difference: Tensor, c: float) -> Tensor:
    """Mean square; c is not read."""
    return difference.square().flatten(1).mean(dim=1)


def l1(difference: Tensor, c: float) -> Tensor:
    """Mean absolute value; c is not read."""
    return difference.abs().flatten(1).mean(dim=1)


def huber(difference: Tensor, c: float) -> Tensor:
    """Mean of sqrt(d_i^2 + c^2) - c, element by element (LCM, arXiv:2310.04378, in the published training code).

    At c = 0 it would be `l1`, but with no finite gradient where an element does not differ.
    """
    return ((difference.square() + c**2).sqrt() - c).flatten(1).mean(dim=1)


def pseudo_huber(difference: Tensor, c: float) -> Tensor:
    """sqrt(mean d^2 + c^2) - c: iCT's sqrt(|d|^2 + C^2) - C over sqrt(elements), with C = c sqrt(elements).

    Song & Dhariwal 2023, arXiv:2310.14189, eq. 8; c = 0.00054. At c = 0 (ECT's) it is the norm, and where there is no
    difference it has no gradient.
    """
    square = l2(difference, c) + c**2
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt() - c


DISTANCES: dict[DistanceName, Callable[[Tensor, float], Tensor]] = {
    "l2": l2,
    "l1": l1,
    "huber": huber,
    "pseudo_huber": pseudo_huber,
}


def check_huber(settings: Any) -> None:
    """Raises ValueError for a c that no Huber distance has, and for one where `distance` is none of them."""
    if settings.distance not in ("huber", "pseudo_huber"):
        refuse_unread(settings, "huber", why=f"distance is {settings.distance}", remedy="set distance=pseudo_huber")
    if settings.huber < 0 or (settings.distance == "huber" and not settings.huber):
        raise ValueError(
            f"huber is {settings.huber:g} and distance {settings.distance}: need huber > 0, for pseudo_huber at least 0"
        )


def adaptive(difference: Tensor, *, power: float, c: float) -> Tensor:
    """Squared error D, summed over the elements, by sg (D + c)^power (MeanFlow, arXiv:2505.13447, eq. 22)."""
    square = difference.square().flatten(1).sum(dim=1)
    return square / (square.detach() + c) ** power
