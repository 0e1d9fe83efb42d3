"""Every objective turns a teacher that needs many steps into a generator of one or two, on every process."""

import copy
import math
from dataclasses import astuple, dataclass
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
from fastgen.objectives.gan import GAN
from fastgen.objectives.guidance import Fixed
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
    """An objective, the steps it is trained and sampled at, its budget, and its bound in teacher's distances."""

    objective: Objective
    steps: int
    cycles: int
    share: float


RECIPES = {
    "kd": Recipe(KnowledgeDistillation(), steps=1, cycles=500, share=0.25),
    "vsd": Recipe(VSD(guidance=Fixed(1.0), ratio=2), steps=1, cycles=300, share=0.25),
    "dmd": Recipe(DMD(ratio=2), steps=1, cycles=300, share=0.25),
    "dmd2": Recipe(DMD2(gan=GAN(0.0), ratio=2), steps=1, cycles=300, share=0.25),
    "dmd2_2step": Recipe(DMD2(gan=GAN(0.0), ratio=2), steps=2, cycles=400, share=0.75),
    "dmd2_4step": Recipe(DMD2(gan=GAN(0.0), ratio=2), steps=4, cycles=500, share=0.9),
}

# Sliced Wasserstein distance to the data, mean over seeds 0, 1, 2; `python tests/test_convergence.py` prints it.
# Two samples of the data are 0.02 apart; the teacher at one step 0.69 (vp), 0.72 (flow, trig), 0.71 (edm), at two
# 0.45, 0.36, 0.36, 0.27, at four 0.23, 0.11, 0.13, 0.26.
MEASURED = {
    "kd": {"vp": 0.046, "flow": 0.044, "edm": 0.044, "trig": 0.044},
    "vsd": {"vp": 0.113, "flow": 0.109, "edm": 0.117, "trig": 0.111},
    "dmd": {"vp": 0.085, "flow": 0.071, "edm": 0.085, "trig": 0.071},
    "dmd2": {"vp": 0.108, "flow": 0.098, "edm": 0.125, "trig": 0.096},
    "dmd2_2step": {"vp": 0.097, "flow": 0.089, "edm": 0.180, "trig": 0.096},
    "dmd2_4step": {"vp": 0.094, "flow": 0.082, "edm": 0.156, "trig": 0.085},
}
FAST = {("kd", "vp"), ("vsd", "trig"), ("dmd", "edm"), ("dmd2", "flow"), ("dmd2_2step", "trig")}


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
    """A plain loop with rates that fall to zero; returns the moving average of the generator."""
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
def generated(generator: Denoiser, grid: Tensor) -> list[Tensor]:
    """The samples x0 after each step of the few-step sampler: predict, renoise, predict ..."""
    process, cond = generator.process, RING.uncond(SAMPLES)
    x = process.prior(noise(2, SAMPLES), full(grid[0], SAMPLES))
    landings = [generator(x, full(grid[0], SAMPLES), cond).x0]
    for i, t in enumerate(grid[1:]):
        x = process.renoise(landings[-1], full(t, SAMPLES), noise(4 + i, SAMPLES))
        landings.append(generator(x, full(t, SAMPLES), cond).x0)
    return landings


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


@dataclass(frozen=True)
class Distances:
    """To the data: of the generator's landings at a random step, of its last step, and of the teacher's sampler."""

    landings: float
    last: float
    teacher: float


def measured(recipe: Recipe, process: str, *, seed: int) -> Distances:
    grid = even_grid(recipe.steps)
    roles = copy.deepcopy(started(process, seed))
    roles.grids = (grid,)
    landings = generated(train(recipe, roles, pairs(process), seed=seed), grid)
    mixed = torch.cat([x[: SAMPLES // recipe.steps] for x in landings])
    return Distances(distance(mixed), distance(landings[-1]), distance(integrated(roles.real_score, grid)))


@pytest.mark.parametrize(
    ("name", "process"),
    [
        pytest.param(name, process, marks=[] if (name, process) in FAST else pytest.mark.slow)
        for name in RECIPES
        for process in PROCESSES
    ],
)
def test_the_generator_learns_the_distribution(name: str, process: str):
    """Over all its landings: that is what a fake score which does not know the step can see."""
    recipe = RECIPES[name]
    found = measured(recipe, process, seed=0)
    assert found.landings < 1.5 * MEASURED[name][process]
    assert found.landings < recipe.share * found.teacher


@pytest.mark.slow
@pytest.mark.xfail(
    strict=True,
    reason="backward simulation matches the mixture of all steps' landings; single steps may err in opposite ways",
)
def test_the_last_of_two_steps_learns_the_distribution_by_itself():
    found = measured(RECIPES["dmd2_2step"], "edm", seed=0)
    assert found.last < found.teacher


def main() -> None:
    """Prints MEASURED, and the distances of the last step alone."""
    for name, recipe in RECIPES.items():
        for process in PROCESSES:
            found = [measured(recipe, process, seed=seed) for seed in range(3)]
            mean = [sum(row) / 3 for row in zip(*(astuple(x) for x in found), strict=True)]
            print(name, process, "landings {:.3f}, last {:.3f}, teacher {:.3f}".format(*mean), flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
