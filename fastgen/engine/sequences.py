"""The networks of a stage with their tokens on several processes."""

import torch

from ..errors import UserError
from ..models.pipelines.token_plans import PlannedParts, groups_of
from ..models.roles import Roles
from ..objectives import Objective, denoisers_of
from .feed import Feed


def part_sequences(roles: Roles, feed: Feed, objective: Objective, size: int) -> None:
    """Parts the tokens of every denoiser's network over groups of so many processes, and tries a call.

    Raises:
        UserError: a network cannot be parted, or not at the size of the run's samples.
    """
    if size == 1:
        return
    x_t, cond = feed.example()
    groups = groups_of(x_t.device, size)
    for name in denoisers_of(objective):
        role = roles.network(name)
        role.parts = role.parts or PlannedParts(role.net, groups)  # roles on one network share it
    t = torch.full((1,), 0.5, dtype=torch.float64, device=x_t.device)
    try:
        with torch.no_grad():
            roles.generator(x_t, t, cond)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{type(roles.network('generator').net).__name__} cannot be called with the tokens of samples of "
            f"{list(x_t.shape[1:])} on {size} processes ({str(error).splitlines()[0][:200]}): choose another size of "
            "samples, or set train.sequence_parallel=1"
        ) from error
