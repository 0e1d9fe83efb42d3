"""Verbs of training by rewards: samples that compete for one prompt, and what each is worth beside the others."""

from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import Latent, pad_like
from .base import Batch
from .flow_map import edges_of
from .moments import check_whole_groups
from .rollout import sampled


def check_group(group: int) -> None:
    """Raises ValueError for groups in which nothing is compared."""
    if group < 2:
        raise ValueError(f"group is {group}: samples of one prompt are compared with each other, need at least 2")


def grouped(batch: Batch, group: int) -> Batch:
    """The batch with only the first of every `group` rows asked for, so many times; noises stay the rows' own.

    Raises:
        UserError: the batch cannot be divided so.
    """
    check_whole_groups(batch, group)
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


def reward_loss(roles: Roles, batch: Batch, x0: Latent) -> Tensor:
    """A loss, itself 0, whose gradient is that of the rewards in units of their spread over the micro-batch.

    ReFL (Xu et al. 2023, arXiv:2304.05977) without its margin; what rewards amount to is told by their figures.
    """
    scores = roles.rewards(x0, batch.asked)
    return -roles.rewards.standardised(scores - scores.detach().mean(dim=1, keepdim=True)).mean()


def policy_loss(roles: Roles, batch: Batch, group: int) -> Tensor:
    """A loss whose gradient is that of -E[A] by one renoising step of the student, over the values of a sample.

    GRPO (arXiv:2402.03300) on the student that samples, whose ratio is 1: -A log p(x_s | x_t), where the step's law is
    Gaussian around alpha_s x0 with deviation sigma_s, so that log p has the slope (alpha_s / sigma_s) eps by x0. What
    follows the step is sampled without gradient; rewards are not differentiated.
    """
    batch = grouped(batch, group)
    grid = edges_of(roles, batch)
    depth = int(torch.randint(len(grid) - 2, (), generator=batch.shared_rng, device=batch.shared_rng.device))
    x_t, t = sampled(roles, batch, grid[:-1], depth=depth)
    x0, process = through(roles.generator, x_t, t, batch.cond).x0, roles.process
    s, eps = batch.full(grid[depth + 1]), batch.noise()
    with torch.no_grad():
        clean = _carried(roles, batch, process.renoise(x0, s, eps), grid[depth + 1 :].tolist())
        roles.rewards.note("spread", spread(clean, group))
        worth = advantages(roles, roles.rewards(clean, batch.asked), group)
        slope = pad_like(worth * (process.alpha(s) / process.sigma(s)), eps).to(eps.dtype) * eps
    return -(slope * x0).mean()


def _carried(roles: Roles, batch: Batch, x: Latent, edges: list[float]) -> Latent:
    """The clean samples [B, ...] that the student's sampler makes of x at the first edge."""
    for here, following in pairwise(edges):
        x = look(roles.generator, x, batch.full(here), batch.cond).x0
        x = roles.process.renoise(x, batch.full(following), batch.noise()) if following else x
    return x
