"""Uni-Instruct against the Fisher form of f-divergences."""

import pytest
import torch
from closed_forms import close, only, processes, quasi_random, scripted, slopes
from quadrature import LINE, SQUARE, Pair, lattice, leaves, marginals, quadrature, score
from test_divergences import LEVEL, NAMES, WIDE, T, judged
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives import Batch
from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.parts.divergences import DivergenceName
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.matching import Scores
from fastgen.process import Process, Trig

FISHER: dict[DivergenceName, tuple[float, float]] = {  # in score space: derivatives by mean and factor
    "reverse_kl": (1.01002, 0.75757),
    "forward_kl": (0.59680, 0.06173),
    "jensen_shannon": (0.32334, 0.09581),
    "jeffreys": (1.60682, 0.81929),
}


def fisher(name: DivergenceName, t: float = T) -> UniInstruct:
    return UniInstruct(divergence=name, clip=WIDE, weight="none", gan=GAN(start=1), times=only(t))


def check_fisher_reference(name: DivergenceName) -> None:
    """|real - fake|^2 in x0 is sigma^4 / alpha^2 times that of the scores; there is one dimension to average over."""
    roles, batch = quadrature(Trig(), LINE, nodes=60)
    measured = torch.cat([slope.flatten() for slope in slopes(roles, fisher(name, LEVEL), batch, "fisher")])
    close(0.8**2 / 0.6**4 * measured, torch.tensor(FISHER[name]).double(), tolerance=2e-5)


@pytest.mark.parametrize("name", FISHER)
def test_uni_instruct_gives_the_reference_numbers(name: DivergenceName):
    check_fisher_reference(name)


def check_fisher_functional(process: Process, name: DivergenceName, pair: Pair, *, nodes: int) -> None:
    """Autograd of the integral of q h(p / q) |real - fake|^2, in which p is fixed and all else is the generator's."""
    roles, batch = quadrature(process, pair, nodes=nodes)
    measured = slopes(roles, fisher(name), batch, "fisher")
    parameters = leaves(pair)
    real, fake = marginals(process, pair, T, parameters=parameters)
    x, volume = lattice(fake)
    r = (real.log_prob(x) - fake.log_prob(x)).exp()
    level = torch.tensor(T, dtype=torch.float64)
    gap = (score(real, x) - score(fake, x)) * process.sigma(level) ** 2 / process.alpha(level)
    density = fake.log_prob(x).exp() * WEIGHTS[name](r) * gap.square().mean(dim=1)
    exact = torch.autograd.grad(density.sum() * volume, parameters)
    close(measured, exact, tolerance=1e-4)


WEIGHTS = {
    "reverse_kl": torch.ones_like,
    "forward_kl": lambda r: r,
    "jeffreys": lambda r: 1 + r,
    "jensen_shannon": lambda r: r / (1 + r),
    "softened_reverse_kl": lambda r: 1 / (1 + r),
    "squared_hellinger": lambda r: r.sqrt() / 2,
    "pearson": lambda r: 2 * r**2,
    "neyman": lambda r: 2 / r,
}


@processes
@NAMES
def test_uni_instruct_is_the_gradient_of_the_fisher_form(process: Process, name: DivergenceName):
    check_fisher_functional(process, name, LINE, nodes=60)


@processes
def test_uni_instruct_sums_the_ratios_slope_over_dimensions(process: Process):
    check_fisher_functional(process, "jensen_shannon", SQUARE, nodes=14)


@processes
def test_uni_instruct_of_reverse_kl_is_twice_sid_at_one_half(process: Process):
    z, eps = quasi_random(2, 256)
    measured = slopes(judged(process), fisher("reverse_kl"), scripted(z, eps), "fisher")
    half = slopes(judged(process), SiD(alpha=0.5, weight="none", times=only(T)), scripted(z, eps), "sid")
    close(measured, [2 * slope for slope in half], tolerance=1e-10)


def detached(self: UniInstruct, roles: Roles, batch: Batch, scores: Scores) -> Tensor:
    """The log ratio as the published code has it: without its own gradient by x_t."""
    with torch.no_grad():
        return roles.discriminator.ratio(scores.x_t, scores.t, batch.cond)


BIASED: dict[DivergenceName, tuple[float, float]] = {
    "forward_kl": (0.59680, 0.36011),
    "jensen_shannon": (0.35572, 0.21089),
    "jeffreys": (1.60682, 1.11767),
}


@pytest.mark.parametrize("name", BIASED)
def test_a_detached_ratio_would_be_biased(name: DivergenceName, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(UniInstruct, "_log_ratio", detached)
    roles, batch = quadrature(Trig(), LINE, nodes=60)
    measured = torch.cat([slope.flatten() for slope in slopes(roles, fisher(name, LEVEL), batch, "fisher")])
    close(0.8**2 / 0.6**4 * measured, torch.tensor(BIASED[name]).double(), tolerance=2e-5)
