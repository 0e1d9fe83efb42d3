"""Solvers and guided fields of the probability flow, against exact flow maps."""

from collections.abc import Sequence

import pytest
import torch
from closed_forms import PLANE, REAL, believed, close
from flow_maps import mapped
from torch import Tensor, nn

from fastgen.models.conditioning import Conditioning
from fastgen.objectives.parts.solvers import Field, ddim, dpm2m, heun, stochastic
from fastgen.process import Prediction, Process
from fastgen.proofs.analytic import ExactDenoiser

ORDERS = {"ddim": (ddim, 1), "heun": (heun, 2), "dpm2m": (dpm2m, 2)}


def full(t: float, count: int = 32) -> Tensor:
    return torch.full((count,), t, dtype=torch.float64)


def noisy(process: Process, t: Tensor) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return process.renoise(REAL.sample(len(t), rng), t, torch.randn(len(t), 2, generator=rng, dtype=torch.float64))


def check_order(name: str, process: Process) -> None:
    """Half the step, 2^-order of the error."""
    solve, order = ORDERS[name]
    t, s = full(0.85), full(0.35)
    x, field = noisy(process, t), Field(ExactDenoiser(process, REAL), REAL.uncond(32))
    errors = [(solve(field, x, t, s, substeps=n) - mapped(process, x, t, s)).norm() for n in (40, 80)]
    assert torch.log2(errors[0] / errors[1]).item() == pytest.approx(order, abs=0.2)
    assert errors[1] < 0.5


def check_stochastic(process: Process, eta: float) -> None:
    """The affine law of one step: mean alpha_s D + sqrt(sigma_s^2 - eta^2 q^2) e, deviation eta q."""
    count = 40_000
    t, s = full(0.7, count), full(0.4, count)
    x = torch.tensor([[0.4, -1.0]], dtype=torch.float64).expand(count, 2)
    field, rng = Field(ExactDenoiser(process, REAL), REAL.uncond(count)), torch.Generator().manual_seed(0)
    found = stochastic(field, x, t, s, eta=eta, rng=rng)
    here = field.model(x[:1], t[:1], REAL.uncond(1))
    (a, b), (c, d) = ((process.alpha(u)[0], process.sigma(u)[0]) for u in (t, s))
    q = ((d / b) ** 2 * (b**2 - (a / c * d) ** 2)).sqrt()
    mean = c * here.x0 + (d**2 - (eta * q) ** 2).sqrt() * here.eps
    close(found.mean(dim=0), mean[0], tolerance=0.02 * max(1.0, float(q)))
    close(found.std(dim=0), (eta * q).expand(2), tolerance=0.02)


class TwoGaussians(nn.Module):
    """Given class 0 N((1, 0), S), unconditionally N((-0.5, 0.4), S): under guidance exactly N(m_w, S)."""

    scalars: tuple[str, ...] = ()

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def mean(self, labels: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0], [-0.5, 0.4]], dtype=torch.float64)[-labels]

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning, scalars: object = None) -> Prediction:
        shift = self.mean(cond.batched["class_labels"]) - REAL.means
        moved = ExactDenoiser(self.process, REAL)(x_t - self.process.alpha(t)[:, None] * shift, t, REAL.uncond(len(t)))
        return Prediction(self.process, t, moved.x0 + shift, moved.eps)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return null.lerp(cond, w)

    def tap(self, x_t: Tensor, t: Tensor, cond: Conditioning, layers: Sequence[str]) -> list[Tensor]:
        raise ValueError("it has no layers")


def check_guided_field(process: Process) -> None:
    """w = 1, 3.4 and 7 row by row: the belief of N(m_w, S), m_w = m_null + w (m_c - m_null)."""
    model, w = TwoGaussians(process), torch.tensor([1.0, 3.4, 7.0], dtype=torch.float64)
    cond, t = PLANE.cond(torch.zeros(3, dtype=torch.long)), full(0.6, 3)
    x = noisy(process, t)
    means = torch.tensor([[1.0, 0.0], [4.6, -0.96], [10.0, -2.4]], dtype=torch.float64)
    alpha, sigma = process.alpha(t[:1])[0], process.sigma(t[:1])[0]
    expected = [believed(mean, REAL.covariances[0], x[i : i + 1], alpha, sigma) for i, mean in enumerate(means)]
    close(Field(model, cond, w)(x, t).x0, torch.cat(expected))
    one = Field(model, cond.index(torch.tensor([1])), 3.4)(x[1:2], t[1:2])
    close(one.x0, expected[1])
