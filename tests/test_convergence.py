"""Every objective turns a teacher that needs many steps into a generator of one or two, on every process."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from fastgen.analytic import ExactDenoiser, Mixture
from fastgen.models.contract import Denoiser
from fastgen.models.roles import Roles
from fastgen.objectives import Batch, Objective, Pair
from fastgen.objectives.dmd import DMD
from fastgen.objectives.dmd2 import DMD2
from fastgen.objectives.kd import KnowledgeDistillation
from fastgen.objectives.vsd import VSD
from fastgen.process import EDM, Discrete, Flow, Process, Trig, even_grid
from fastgen.toy import sliced_wasserstein, toy_roles

PROCESSES: dict[str, Process] = {
    "vp": Discrete(DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012).alphas_cumprod),
    "flow": Flow(),
    "edm": EDM(),
    "trig": Trig(),
}
ANGLES = 2 * math.pi * torch.arange(5) / 5
RING = Mixture(
    torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1),
    0.02 * torch.eye(2).expand(5, 2, 2),
    weights=torch.tensor([0.3, 0.1, 0.2, 0.25, 0.15]),
)
SIZE, SAMPLES, PAIRS = 256, 10_000, 4096


@dataclass(frozen=True)
class Recipe:
    """An objective, the number of steps it is trained and sampled at, and its budget in cycles."""

    objective: Objective
    steps: int
    cycles: int


RECIPES = {
    "kd": Recipe(KnowledgeDistillation(), steps=1, cycles=500),
    "vsd": Recipe(VSD(guidance=1.0, ratio=2), steps=1, cycles=300),
    "dmd": Recipe(DMD(ratio=2), steps=1, cycles=300),
    "dmd2": Recipe(DMD2(gan=0.0, ratio=2), steps=1, cycles=300),
    "dmd2_2step": Recipe(DMD2(gan=0.0, ratio=2), steps=2, cycles=400),
    "dmd2_4step": Recipe(DMD2(gan=0.0, ratio=2), steps=4, cycles=500),
}


def noise(seed: int, count: int) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))


def full(t: Tensor, count: int) -> Tensor:
    return t.double().expand(count)


@cache
def started(name: str, seed: int) -> Roles:
    return toy_roles(PROCESSES[name], RING, [], updates=400, seed=seed)


@cache
def pairs(name: str) -> Pair:
    """Noise and the end of the exact probability flow that starts there."""
    process, eps = PROCESSES[name], noise(1, PAIRS)
    one = torch.ones(PAIRS, dtype=torch.float64)
    exact = ExactDenoiser(process, RING)
    return Pair(eps, exact.flow_map(process.prior(eps, one), one, 0 * one, RING.uncond(PAIRS), steps=60))


def train(recipe: Recipe, roles: Roles, pair: Pair, *, seed: int) -> nn.Module:
    """A plain loop; returns the moving average of the generator."""
    rng, shared_rng = (torch.Generator().manual_seed(seed + i) for i in (10, 20))
    rates = {"generator": 2e-3, "fake_score": 4e-3}
    cycle = recipe.objective.cycle
    optimizers = {
        turn: torch.optim.Adam(roles[turn[0]].parameters(), lr=rates[turn[0]], betas=(0.5, 0.99), fused=True)
        for turn in set(cycle)
    }
    ema = copy.deepcopy(roles["generator"])
    for i in range(recipe.cycles):
        for turn in cycle:
            rows = torch.randint(PAIRS, (SIZE,), generator=rng)
            drawn = Pair(pair.eps[rows], pair.x0[rows])
            batch = Batch(RING.uncond(SIZE), (2,), rng, shared_rng, pairs=drawn)
            optimizer = optimizers[turn]
            optimizer.param_groups[0]["lr"] = rates[turn[0]] * (1 - i / recipe.cycles)
            with roles.training(turn):
                sum(getattr(recipe.objective, turn[0])(roles, batch).values()).backward()
            optimizer.step()
            optimizer.zero_grad()
        torch._foreach_lerp_(list(ema.parameters()), roles.parameters("generator"), 0.02)
    return ema


@torch.no_grad()
def generated(generator: Denoiser, grid: Tensor) -> Tensor:
    """Samples of the few-step sampler: predict, renoise, predict ..."""
    process, cond = generator.process, RING.uncond(SAMPLES)
    x = process.prior(noise(2, SAMPLES), full(grid[0], SAMPLES))
    for i, t in enumerate(grid):
        if i:
            x = process.renoise(x, full(t, SAMPLES), noise(2 + i, SAMPLES))
        x = generator(x, full(t, SAMPLES), cond).x0
    return x


@torch.no_grad()
def integrated(teacher: Denoiser, grid: Tensor) -> Tensor:
    """Samples of the teacher's deterministic sampler on the same grid."""
    process, cond = teacher.process, RING.uncond(SAMPLES)
    x = process.prior(noise(2, SAMPLES), full(grid[0], SAMPLES))
    for t, s in zip(grid, [*grid[1:], torch.zeros(())], strict=True):
        x = teacher(x, full(t, SAMPLES), cond).at(full(s, SAMPLES))
    return x


def distance(samples: Tensor) -> float:
    return sliced_wasserstein(samples, RING.sample(SAMPLES, torch.Generator().manual_seed(3)))


def measured(objective: str, process: str, *, seed: int) -> tuple[float, float, float]:
    recipe = RECIPES[objective]
    roles = copy.deepcopy(started(process, seed))
    grid = even_grid(recipe.steps)
    roles.grids = (grid,)
    ema = train(recipe, roles, pairs(process), seed=seed)
    depths = [generated(ema, grid[: i + 1]) for i in range(recipe.steps)]
    mixed = torch.cat([x[: SAMPLES // recipe.steps] for x in depths])
    return distance(depths[-1]), distance(mixed), distance(integrated(roles.real_score, grid))
