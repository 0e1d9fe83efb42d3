"""Training on the proof bed: a plain loop that knows no objective."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from ..models.denoiser import NetworkDenoiser
from ..models.roles import Roles
from ..objectives import Objective, roles_of
from ..process import even_grid
from .bed import Bed, batch_for, seeded, started

SIZE = 256


@dataclass(frozen=True)
class Recipe:
    """An objective, and how it is trained on the bed.

    Args:
        objective: objective with its settings.
        steps: step count of the student.
        shift: shift of its times towards the noise, see `even_grid`.
        cycles: number of cycles of the objective's turns.
        rate: learning rate of the generator.
        other_rate: learning rate of every other role that is trained.
        judged: the student's "last" samples, or the mixture of all its steps' "landings".
        name: what later stages call it.
        before: the stages before it.
        carry: role -> whose weights it starts from, as of a run's stage.
    """

    objective: Objective
    steps: int = 1
    shift: float = 1.0
    cycles: int = 300
    rate: float = 2e-3
    other_rate: float = 4e-3
    judged: Literal["last", "landings"] = "last"
    name: str = ""
    before: "tuple[Recipe, ...]" = ()
    carry: Mapping[str, str] = field(default_factory=dict)

    @property
    def grid(self) -> Tensor:
        return even_grid(self.steps, shift=self.shift)


def trained(recipe: Recipe, bed: Bed, *, seed: int) -> NetworkDenoiser:
    """The moving average of the generator after the recipe and the stages before it."""
    left: dict[str, nn.Module] = {}
    for stage in (*recipe.before, recipe):
        roles = started(stage.objective, bed, stage.grid, seed=seed)
        for role, origin in ({"generator": "generator"} | dict(stage.carry)).items():
            roles.members[role] = copy.deepcopy(left.get(origin, roles[role]))
        generator = train(stage, roles, bed, seed=seed)
        left |= {"generator": generator, "fake_score": roles["fake_score"], stage.name: generator}
    return generator


def train(recipe: Recipe, roles: Roles, bed: Bed, *, seed: int) -> NetworkDenoiser:
    """Trains the roles in place with rates that fall to zero; returns the moving average of the generator."""
    objective, rng, shared_rng = recipe.objective, seeded(seed + 10), seeded(seed + 20)
    optimizers = {role: _optimizer(recipe, roles, role) for role in roles_of(objective) if roles.parameters(role)}
    schedules = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, recipe.cycles) for o in optimizers.values()]
    generator = roles["generator"]
    assert isinstance(generator, NetworkDenoiser)
    ema, trained = copy.deepcopy(generator), list[Tensor](generator.parameters())
    for cycle in range(recipe.cycles):
        for after, turn in pairwise(((), *objective.cycle)):
            batch = batch_for(objective, bed, SIZE, rng, shared_rng, images=cycle * SIZE)
            batch.after = after
            with roles.training(turn):
                torch.stack(list(getattr(objective, turn[0])(roles, batch).values())).sum().backward()
            for role in optimizers.keys() & turn:
                optimizers[role].step()
                optimizers[role].zero_grad()
        for schedule in schedules:
            schedule.step()
        torch._foreach_lerp_(list(ema.parameters()), trained, 0.02)
    return ema


def _optimizer(recipe: Recipe, roles: Roles, role: str) -> torch.optim.Optimizer:
    rate = recipe.rate if role == "generator" else recipe.other_rate
    return torch.optim.Adam(roles.parameters(role), lr=rate, betas=(0.5, 0.99), fused=True)
