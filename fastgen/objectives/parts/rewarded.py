"""Verbs of training by rewards: samples that compete for one prompt, and what each is worth beside the others."""

from dataclasses import replace

import torch
from torch import Tensor

from ...errors import UserError
from ...models.roles import Roles
from ...process import Latent
from .base import Batch


def check_group(group: int) -> None:
    """Raises ValueError for groups in which nothing is compared."""
    if group < 2:
        raise ValueError(f"group is {group}: samples of one prompt are compared with each other, need at least 2")


def grouped(batch: Batch, group: int) -> Batch:
    """The batch with only the first of every `group` rows asked for, so many times; noises stay the rows' own.

    Raises:
        UserError: the batch cannot be divided so.
    """
    if batch.size % group:
        raise UserError(
            f"objective.group is {group}, and a micro-batch has {batch.size} samples: set train.batch (or "
            f"train.micro_batch) to a multiple of {group} on each process"
        )
    rows = torch.arange(batch.size) // group * group
    asked = [batch.asked[row] for row in rows.tolist()] if batch.asked else ()
    return replace(batch, cond=batch.cond.index(rows), asked=asked)


def advantages(roles: Roles, scores: Tensor, group: int) -> Tensor:
    """What each sample is worth beside the others of its group, [B] in [-1, 1].

    Of scores [n, B]: less their group's mean, in units of the spread that is left over the whole micro-batch, weighed
    over the rewards and clipped (MeanFlowAdvantage, 2026, section 3.3, after AdvantageFlow).
    """
    parts = scores.unflatten(1, (-1, group))
    centred = (parts - parts.mean(dim=2, keepdim=True)).flatten(1)
    return roles.rewards.standardised(centred).clamp(-1, 1)


def spread(x: Latent, group: int) -> Tensor:
    """Root mean square deviation of samples from their group's mean: what is left of the variety of one prompt."""
    parts = x.unflatten(0, (-1, group))
    found: Tensor = parts.std(dim=1, correction=0).square().mean().sqrt()
    return found
