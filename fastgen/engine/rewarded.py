"""What rewards said in a cycle, for the log."""

import torch

from ..models.rewards import Rewards
from ..models.roles import Roles
from .distributed import average


def rewards_of(roles: Roles) -> dict[str, float]:
    """Figures of the last samples that were rewarded, means over the processes; none where none are."""
    rewards = roles.members.get("rewards")
    if not isinstance(rewards, Rewards) or not rewards.figures:
        return {}
    values = average(torch.stack([value.float() for value in rewards.figures.values()])).tolist()
    return {f"rewards/{name}": value for name, value in zip(rewards.figures, values, strict=True)}
