"""f-divergences, their weights and their Fisher form, against quadrature and autograd."""

import math

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    believed,
    clean,
    close,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
)
from quadrature import LINE, SQUARE, Pair, lattice, leaves, marginals, quadrature, score
from torch import Tensor

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.models.state import RatioMeans
from fastgen.objectives import Batch
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.parts import weights
from fastgen.objectives.parts.divergences import DIVERGENCES, DivergenceName
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.matching import Scores, compare
from fastgen.process import Process, Trig
from fastgen.proofs.analytic import ExactRatio

T = 0.55
WIDE = (1e-30, 1e30)
NAMES = pytest.mark.parametrize("name", DIVERGENCES)
LEVEL = Trig().time_of(torch.tensor(2 * math.log(0.8 / 0.6))).item()  # alpha 0.8 and sigma 0.6

CONVEX = {  # f(r) as the literature writes it, r = p_real / p_fake
    "reverse_kl": lambda r: -r.log(),
    "forward_kl": lambda r: r * r.log(),
    "jeffreys": lambda r: (r - 1) * r.log(),
    "jensen_shannon": lambda r: r * r.log() - (1 + r) * ((1 + r) / 2).log(),
    "softened_reverse_kl": lambda r: (1 + r) * ((1 + r) / r).log(),
    "squared_hellinger": lambda r: (1 - r.sqrt()) ** 2,
    "pearson": lambda r: (r - 1) ** 2,
    "neyman": lambda r: (1 - r) ** 2 / r,
}
RATIOS = torch.tensor([0.05, 0.3, 1.0, 2.0, 15.0], dtype=torch.float64)


def check_weight_is_the_second_derivative(name: DivergenceName) -> None:
    """h = r^2 f'' with f of the literature differentiated twice, and its slope by the log ratio from differences."""
    divergence = DIVERGENCES[name]
    r = RATIOS.clone().requires_grad_()
    (first,) = torch.autograd.grad(CONVEX[name](r).sum(), r, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), r) if first.requires_grad else (torch.zeros_like(r),)
    close(divergence.f(RATIOS.log()), CONVEX[name](RATIOS))
    close(divergence.h(RATIOS.log()), RATIOS**2 * second)
    difference = divergence.h(RATIOS.log() + 1e-5) - divergence.h(RATIOS.log() - 1e-5)
    close(divergence.slope(RATIOS.log()), difference / 2e-5, tolerance=1e-6)


def weighed(process: Process, name: DivergenceName) -> tuple[Tensor, Tensor]:
    """E h(r) (fake - real), and that times the generator's noise."""
    roles, batch = quadrature(process, LINE, nodes=60)
    z = batch.script.pop(0)
    x0 = LINE.other_mean + z @ LINE.other_factor.T
    scores = compare(look, FDistill(times=only(T)), roles, batch, clean(batch, x0))
    h = DIVERGENCES[name].h(roles.discriminator.ratio(scores.x_t, scores.t, batch.cond))
    grad = (roles["generator"].weights * h)[:, None] * weights.weighed("none", scores, x0)
    return grad.sum(dim=0), grad.T @ z


def check_direction_is_the_divergences_gradient(process: Process, name: DivergenceName) -> None:
    """(alpha / sigma)^2 E h(r) (fake - real) against autograd of the integral of f(p / q) q by the generator's law."""
    parameters = leaves(LINE)
    real, fake = marginals(process, LINE, T, parameters=parameters)
    x, volume = lattice(fake, reach=9.0)
    r = (real.log_prob(x) - fake.log_prob(x)).exp()
    divergence = (fake.log_prob(x).exp() * CONVEX[name](r)).sum() * volume
    exact = torch.autograd.grad(divergence, parameters)
    level = torch.tensor(T, dtype=torch.float64)
    snr = process.alpha(level) ** 2 / process.sigma(level) ** 2
    close([snr * slope for slope in weighed(process, name)], list(exact), tolerance=1e-5)


def judged(process: Process) -> Roles:
    roles = gaussian_roles(process)
    roles.members["discriminator"] = ExactRatio(roles["real_score"], roles["fake_score"])
    roles.members["ratio_means"] = RatioMeans()
    return roles


def check_f_distill(process: Process, name: DivergenceName, clip: tuple[float, float] = WIDE) -> None:
    """h(r) / mean h times DMD's direction, r clipped and then divided by its mean."""
    z, eps, other = *quasi_random(2), quasi_random(2)[1].flip(0)
    objective = FDistill(divergence=name, clip=clip, times=only(T))
    measured = slopes(judged(process), objective, scripted(z, eps, other), "dm")
    level = torch.tensor(T, dtype=torch.float64)
    alpha, sigma = process.alpha(level), process.sigma(level)
    x0 = OTHER_MEAN + z @ OTHER_FACTOR.T
    x_t = alpha * x0 + sigma * eps
    real = believed(MEAN, COVARIANCE, x_t, alpha, sigma)
    fake = believed(OTHER_MEAN, OTHER_FACTOR @ OTHER_FACTOR.T, x_t, alpha, sigma)
    p, q = marginals(process, SQUARE, T)
    r = (p.log_prob(x_t) - q.log_prob(x_t)).exp().clamp(*clip)
    r = (r / r.mean()).requires_grad_()
    (first,) = torch.autograd.grad(CONVEX[name](r).sum(), r, create_graph=True)
    h = (r**2 * torch.autograd.grad(first.sum(), r)[0]).detach()
    grad = (h / h.mean())[:, None] * (fake - real) / ((x0 - real).abs().sum(dim=1, keepdim=True) / 2)
    close(measured, (grad.mean(dim=0) / 2, grad.T @ z / len(z) / 2), tolerance=1e-5)


def check_ratio_means() -> None:
    """Per tenth of time; `rate` of the old mean, one at first, is kept."""
    ratio, t = torch.tensor([2.0, 4.0, 10.0]).double(), torch.tensor([0.31, 0.39, 1.0]).double()
    close(RatioMeans().normalise(ratio, t, rate=0.0), torch.tensor([2 / 3, 4 / 3, 1.0]).double())
    means = RatioMeans()
    close(means.normalise(ratio, t, rate=0.5), ratio / torch.tensor([2.0, 2.0, 5.5]).double())
    close(means.normalise(ratio, t, rate=0.5), ratio / torch.tensor([2.5, 2.5, 7.75]).double())
    resumed = RatioMeans()
    resumed.load_state_dict(means.state_dict())
    close(resumed.normalise(ratio[:1], t[:1], rate=1.0), torch.tensor([2 / 2.5]).double())
    close(resumed.normalise(ratio[:1], t[:1] - 0.3, rate=1.0), torch.tensor([2.0]).double())


FISHER: dict[DivergenceName, tuple[float, float]] = {  # in score space: derivatives by mean and factor
    "reverse_kl": (1.01002, 0.75757),
    "forward_kl": (0.59680, 0.06173),
    "jensen_shannon": (0.32334, 0.09581),
    "jeffreys": (1.60682, 0.81929),
}

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


def fisher(name: DivergenceName, t: float = T) -> UniInstruct:
    return UniInstruct(divergence=name, clip=WIDE, weight="none", gan=GAN(start=1), times=only(t))


def check_fisher_reference(name: DivergenceName) -> None:
    """|real - fake|^2 in x0 is sigma^4 / alpha^2 times that of the scores; there is one dimension to average over."""
    roles, batch = quadrature(Trig(), LINE, nodes=60)
    measured = torch.cat([slope.flatten() for slope in slopes(roles, fisher(name, LEVEL), batch, "fisher")])
    close(0.8**2 / 0.6**4 * measured, torch.tensor(FISHER[name]).double(), tolerance=2e-5)


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


def detached(self: UniInstruct, roles: Roles, batch: Batch, scores: Scores) -> Tensor:
    """The log ratio as the published code has it: without its own gradient by x_t."""
    with torch.no_grad():
        return roles.discriminator.ratio(scores.x_t, scores.t, batch.cond)
