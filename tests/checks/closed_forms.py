"""Processes, distributions, scripted batches and exact gradients that the tests of objectives share."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives import Batch, Landing, Objective
from fastgen.process import EDM, Discrete, Flow, Process, Trig, Uniform, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, Mixture

PROCESSES: dict[str, Process] = {
    "vp": Discrete(DDIMScheduler().alphas_cumprod),
    "flow": Flow(),
    "edm": EDM(),
    "trig": Trig(),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
MEAN = torch.tensor([0.3, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.8, 0.2], [0.2, 0.5]], dtype=torch.float64)
REAL = Mixture(MEAN[None], COVARIANCE[None])
OTHER_MEAN = torch.tensor([0.9, 0.1], dtype=torch.float64)
OTHER_FACTOR = torch.tensor([[1.1, 0.0], [-0.4, 0.7]], dtype=torch.float64)
PLANE = Mixture(
    torch.tensor([[1.0, 0.0], [-0.5, 1.0], [-0.5, -1.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]], [[0.25, -0.2], [-0.2, 0.3]]]),
    labels=torch.tensor([0, 1, 1]),
)


@dataclass
class ScriptedBatch(Batch):
    """A batch whose noise is the next [B, d] of a given list."""

    script: list[Tensor] = field(default_factory=list)

    def noise(self) -> Tensor:
        return self.script.pop(0)


def streams(seed: int = 0) -> dict[str, torch.Generator]:
    return {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(("rng", "shared_rng"))}


def scripted(*script: Tensor, seed: int = 0, real: Tensor | None = None) -> ScriptedBatch:
    cond = REAL.uncond(len(script[0]))
    return ScriptedBatch(cond, tuple(script[0].shape[1:]), **streams(seed), real=real, script=list(script))


def clean(batch: Batch, x0: Tensor) -> Landing:
    """The landing of a sample that one step made."""
    return Landing(x0, None, batch.full(1.0), x0)


def cubature(dim: int) -> tuple[Tensor, Tensor]:
    """Two unit noises [4 dim, dim]; averages over the batch of what is quadratic in them are expectations."""
    axes = math.sqrt(2 * dim) * torch.eye(2 * dim, dtype=torch.float64)
    points = torch.cat([axes, -axes])
    return points[:, :dim], points[:, dim:]


def quasi_random(dim: int, count: int = 2048) -> tuple[Tensor, Tensor]:
    """Two unit noises [count, dim] that fill space evenly."""
    u = torch.quasirandom.SobolEngine(2 * dim, scramble=True, seed=0).draw(count, dtype=torch.float64)
    return torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)).chunk(2, dim=1)


def only(t: float) -> Uniform:
    """The time law that is t, to nine digits."""
    return Uniform(t - 1e-9, t)


def gaussian_roles(process: Process, **members: nn.Module) -> Roles:
    """An affine generator, the exact score of REAL, that of the generator's own law, and a coach like the generator."""
    generator = AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR)
    trio = {
        "generator": generator,
        "fake_score": ExactDenoiser(process, generator.law()),
        "real_score": ExactDenoiser(process, REAL),
        "coach": AffineGenerator(process, OTHER_MEAN, OTHER_FACTOR),
    }
    return Roles(trio | members, Plan([even_grid(1)]))


def slopes(roles: Roles, objective: Objective, batch: Batch, term: str) -> tuple[Tensor, Tensor]:
    """Derivatives of a term of the generator's turn by the affine generator's mean [d] and factor [d, d]."""
    generator = roles["generator"]
    with roles.training(("generator",)):
        loss = objective.generator(roles, batch)[term]
        assert loss.requires_grad, "the term does not reach the generator"
        mean, factor = torch.autograd.grad(loss, [generator.mean, generator.factor])
    return mean, factor


def believed(mean: Tensor, covariance: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x0 | x_t] of a Gaussian by plain linear algebra (independent of `fastgen.proofs.analytic`)."""
    noisy = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    return mean + alpha * torch.linalg.solve(noisy, (x_t - alpha * mean).T).T @ covariance


def close(actual: object, expected: object, *, tolerance: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
