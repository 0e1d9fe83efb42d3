"""The table by prompt: how well each one's images fit it."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..rows import PromptRow

AT_AN_END = 250
"""Prompts that are kept with the lowest scores, and with the highest."""


def per_prompt(alignment: Tensor, conditions: Tensor, prompts: Mapping[int, str]) -> tuple[PromptRow, ...]:
    """The prompts from the lowest mean score to the highest, of more than 500 those at both ends.

    Args:
        alignment: [N] cosine between each image and what it was asked for.
        conditions: [N] which prompt that was, by number.
        prompts: prompts by these numbers.
    """
    numbers, places, counts = conditions.unique(return_inverse=True, return_counts=True)
    means = torch.zeros(len(numbers), dtype=torch.float64).index_add_(0, places, 100 * alignment.double()) / counts
    order = means.argsort(stable=True).tolist()
    kept = order if len(order) <= 2 * AT_AN_END else order[:AT_AN_END] + order[-AT_AN_END:]
    return tuple(PromptRow(prompts[int(numbers[i])], int(counts[i]), float(means[i])) for i in kept)
