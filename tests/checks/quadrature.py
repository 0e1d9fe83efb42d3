"""Expectations over a generator's noises by Gauss-Hermite quadrature, and the Gaussians it is held against."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from closed_forms import COVARIANCE, MEAN, OTHER_FACTOR, OTHER_MEAN, ScriptedBatch, streams
from torch import Tensor

from fastgen.models.conditioning import Conditioning
from fastgen.models.roles import Roles
from fastgen.models.state import RatioMeans
from fastgen.models.walk import Plan
from fastgen.process import Prediction, Process, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, ExactRatio, Mixture


@dataclass(frozen=True)
class Pair:
    """Real data N(mean, covariance), and a generator other_mean + other_factor z."""

    mean: Tensor
    covariance: Tensor
    other_mean: Tensor
    other_factor: Tensor

    @property
    def dim(self) -> int:
        return len(self.mean)


def line(*values: float) -> list[Tensor]:
    return [torch.tensor(value, dtype=torch.float64) for value in values]


LINE = Pair(*line([0.3], [[0.8]], [0.9], [[1.1]]))  # the reference numbers of a level of alpha 0.8, sigma 0.6
SQUARE = Pair(MEAN, COVARIANCE, OTHER_MEAN, OTHER_FACTOR)


class WeighedGenerator(AffineGenerator):
    """Its samples hand on their gradients times B weights [B], so that a batch's mean becomes a weighted one."""

    def __init__(self, process: Process, pair: Pair, weights: Tensor) -> None:
        super().__init__(process, pair.other_mean, pair.other_factor)
        self.weights = weights

    def forward(
        self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        belief = super().forward(x_t, t, cond, scalars)
        if belief.x0.requires_grad:
            belief.x0.register_hook(lambda grad: len(grad) * self.weights[:, None] * grad)
        return belief


def quadrature(process: Process, pair: Pair, *, nodes: int) -> tuple[Roles, ScriptedBatch]:
    """Exact scores, their exact ratio and a generator, with the noises over which its gradient is an expectation."""
    points, weights = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(nodes))
    noises = torch.cartesian_prod(*2 * pair.dim * [points])
    products = torch.cartesian_prod(*2 * pair.dim * [weights / weights.sum()]).prod(dim=1)
    generator = WeighedGenerator(process, pair, products)
    real = ExactDenoiser(process, Mixture(pair.mean[None], pair.covariance[None]))
    fake = ExactDenoiser(process, generator.law())
    scores = {"generator": generator, "real_score": real, "fake_score": fake}
    states = {"discriminator": ExactRatio(real, fake), "ratio_means": RatioMeans()}
    cond = real.data.uncond(len(noises))
    batch = ScriptedBatch(cond, (pair.dim,), **streams(), script=list(noises.chunk(2, dim=1)))
    return Roles(scores | states, Plan([even_grid(1)])), batch


def marginals(
    process: Process, pair: Pair, t: float, *, parameters: tuple[Tensor, Tensor] | None = None
) -> tuple[torch.distributions.MultivariateNormal, torch.distributions.MultivariateNormal]:
    """The laws of the noised real and generated samples; the latter of other parameters where given."""
    level = torch.tensor(t, dtype=torch.float64)
    alpha, noise = process.alpha(level), process.sigma(level) ** 2 * torch.eye(pair.dim, dtype=torch.float64)
    mean, factor = parameters or (pair.other_mean, pair.other_factor)
    return (
        torch.distributions.MultivariateNormal(alpha * pair.mean, alpha**2 * pair.covariance + noise),
        torch.distributions.MultivariateNormal(alpha * mean, alpha**2 * factor @ factor.T + noise),
    )


def score(law: torch.distributions.MultivariateNormal, x: Tensor) -> Tensor:
    """grad log density at x [B, d]."""
    return torch.linalg.solve(law.covariance_matrix, (law.mean - x).T).T


def leaves(pair: Pair) -> tuple[Tensor, Tensor]:
    """The generator's parameters, to differentiate an analytic divergence by."""
    return pair.other_mean.clone().requires_grad_(), pair.other_factor.clone().requires_grad_()


def lattice(
    law: torch.distributions.MultivariateNormal, *, reach: float = 14.0, count: int = 4001
) -> tuple[Tensor, Tensor]:
    """Points [n, d] that cover a law in one or two dimensions, and the volume of each."""
    dim = len(law.mean)
    axis = torch.linspace(-reach, reach, count if dim == 1 else round(count**0.5) * 4, dtype=torch.float64)
    spread = law.covariance_matrix.diagonal().sqrt()
    points = torch.cartesian_prod(*dim * [axis]).reshape(-1, dim) * spread + law.mean
    return points.detach(), ((axis[1] - axis[0]) ** dim * spread.prod()).detach()
