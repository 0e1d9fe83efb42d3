"""Exact directions and gradients of one problem in one dimension, beside values that were integrated apart."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgen.process import Trig
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, ExactRatio, Mixture


class ReferenceProblem:
    """One dimension, alpha .8, sigma .6: real N(.3, .8), generator .9 + 1.1 z; all expectations by Gauss-Hermite."""

    def __init__(self) -> None:
        process = Trig()
        mean, factor, real_mean, real_variance = torch.tensor([0.9, 1.1, 0.3, 0.8], dtype=torch.float64)
        self.generator = AffineGenerator(process, mean[None], factor[None, None])
        real = Mixture(real_mean[None, None], real_variance[None, None, None])
        self.real = ExactDenoiser(process, real)
        self.fake = ExactDenoiser(process, self.generator.law())
        nodes, weights = np.polynomial.hermite_e.hermegauss(120)
        z, self.noise = (x.reshape(-1, 1) for x in torch.meshgrid(*2 * [torch.tensor(nodes)], indexing="ij"))
        self.weights = torch.outer(*2 * [torch.tensor(weights)]).flatten() / (2 * math.pi)
        one = torch.ones(len(z), dtype=torch.float64)
        self.t = torch.full_like(one, math.acos(0.8) / (math.pi / 2))
        self.cond = self.real.data.uncond(len(z))
        self.x0 = self.generator(z, one, self.cond).x0
        self.x_t = process.renoise(self.x0, self.t, self.noise)
        self.f_r, self.f_g = (net(self.x_t, self.t, self.cond).x0 for net in (self.real, self.fake))
        self.score_r, self.score_g = (net(self.x_t, self.t, self.cond).score for net in (self.real, self.fake))
        self.ratio = ExactRatio(self.real, self.fake).ratio(self.x_t, self.t, self.cond)[:, None].exp()

    def mean(self, values: Tensor) -> Tensor:
        return self.weights @ values.sum(dim=1)

    def slopes(self, value: Tensor) -> list[float]:
        """Its derivatives by the generator's mean and factor."""
        gradients = torch.autograd.grad(value, list(self.generator.parameters()), retain_graph=True)
        return [x.item() for x in gradients]

    def direction(self, grad: Tensor) -> list[float]:
        return self.slopes(self.mean(grad.detach() * self.x0))

    def sid(self, a: float) -> Tensor:
        gap = self.f_r - self.f_g
        return self.mean(gap * (self.f_r - self.x0 - a * gap))

    def fisher(self, h: Tensor, slope: Tensor) -> Tensor:
        """The path-gradient form of a Fisher-type f-divergence; h of the ratio r and slope = r h'(r)."""
        gap = self.score_r - self.score_g
        conditional = -(self.x_t - 0.8 * self.x0) / 0.36
        return self.mean((h - slope) * gap**2 + 2 * h * gap * (self.score_g - conditional))


def test_values_of_the_reference_problem():
    p = ReferenceProblem()
    values = {
        "KL": p.mean(-p.ratio.log()),
        "score Fisher": p.mean((p.score_g - p.score_r) ** 2),
        "x0 Fisher": p.mean((p.f_r - p.f_g) ** 2),
        "denoising floor": p.mean((p.f_g - p.x0) ** 2),
        "SiD 0.5": p.sid(0.5),
        "SiD 1": p.sid(1.0),
        "SiD 1.2": p.sid(1.2),
    }
    reference = [0.151033941, 0.382827876, 0.077522645, 0.383991537, 0.038761322, 0, -0.015504529]
    assert [x.item() for x in values.values()] == pytest.approx(reference, abs=1e-9)


def test_directions_of_the_reference_problem():
    p = ReferenceProblem()
    gap = p.f_g - p.f_r
    assert p.direction(gap) == pytest.approx([0.247706422, 0.105045225], abs=1e-9)
    assert p.direction(0.64 / 0.36 * gap) == pytest.approx([0.440366972, 0.186747066], abs=1e-9)
    assert p.direction(0.64 / 0.36 * p.ratio * gap)[0] == pytest.approx(0.338504937, abs=1e-9)


def test_path_gradients_of_the_reference_problem():
    p = ReferenceProblem()
    assert p.slopes(p.sid(0.5)) == pytest.approx([0.102264119, 0.076703226], abs=1e-9)
    assert p.slopes(p.sid(1.0)) == pytest.approx([0.078609231, 0.066671863], abs=1e-9)
    assert p.slopes(p.sid(1.2)) == pytest.approx([0.069147276, 0.062659318], abs=1e-9)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (torch.ones_like, (1.01002, 0.75757)),
        (lambda r: r, (0.59680, 0.06173)),
        (lambda r: r / (1 + r), (0.32334, 0.09581)),
        (lambda r: 1 + r, (1.60682, 0.81929)),
    ],
    ids=["reverse KL", "forward KL", "Jensen-Shannon", "Jeffreys"],
)
def test_fisher_gradients_of_the_reference_problem(weight, expected: tuple[float, float]):
    p = ReferenceProblem()
    r = p.ratio
    h = weight(r)
    slope = r * torch.func.vmap(torch.func.grad(weight))(r.flatten())[:, None]
    assert p.slopes(p.fisher(h, slope)) == pytest.approx(expected, abs=1e-5)
