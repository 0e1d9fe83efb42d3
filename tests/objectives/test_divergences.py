"""f-divergences, and the objectives that weigh by the ratio of densities, against quadrature and plain algebra."""

import math

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    REAL,
    believed,
    clean,
    close,
    gaussian_roles,
    only,
    processes,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from quadrature import LINE, SQUARE, lattice, leaves, marginals, quadrature
from torch import Tensor

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.models.state import RatioMeans
from fastgen.objectives import Batch, Objective
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.parts import weights
from fastgen.objectives.parts.divergences import DIVERGENCES, DivergenceName
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.matching import compare
from fastgen.process import Flow, Process, Trig
from fastgen.proofs.analytic import ExactRatio

T = 0.55
WIDE = (1e-30, 1e30)
NAMES = pytest.mark.parametrize("name", DIVERGENCES)
LEVEL = Trig().time_of(torch.tensor(2 * math.log(0.8 / 0.6))).item()  # alpha 0.8 and sigma 0.6

# The table

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


@NAMES
def test_the_weight_is_r_squared_times_the_second_derivative(name: DivergenceName):
    check_weight_is_the_second_derivative(name)


REFERENCE: dict[DivergenceName, float] = {  # d / d(generator's mean) of p = N(0.3, 0.8) against N(0.9, 1.1), no noise
    "forward_kl": 0.545455,
    "reverse_kl": 0.750000,
    "jensen_shannon": 0.281621,
    "pearson": 1.152160,
    "neyman": 5.318779,
    "squared_hellinger": 0.299285,
    "jeffreys": 1.295455,
    "softened_reverse_kl": 0.468379,
}


@NAMES
def test_the_weights_give_the_reference_derivatives(name: DivergenceName):
    p, q = (torch.distributions.Normal(mean, variance**0.5) for mean, variance in ((0.3, 0.8), (0.9, 1.1)))
    x = torch.linspace(-30, 30, 20001, dtype=torch.float64)
    log_ratio = p.log_prob(x) - q.log_prob(x)
    gap = (0.9 - x) / 1.1 - (0.3 - x) / 0.8
    measured = (q.log_prob(x).exp() * DIVERGENCES[name].h(log_ratio) * gap).sum() * (x[1] - x[0])
    assert measured.item() == pytest.approx(REFERENCE[name], abs=2e-6)


@pytest.mark.parametrize("name", ["forward_kl", "jeffreys", "jensen_shannon", "squared_hellinger", "pearson"])
def test_covering_divergences_pull_where_the_generator_is_missing(name: DivergenceName):
    assert (DIVERGENCES[name].h(RATIOS.log()).diff() > 0).all()


@pytest.mark.parametrize("name", ["softened_reverse_kl", "neyman"])
def test_seeking_divergences_pull_where_the_data_are_missing(name: DivergenceName):
    assert (DIVERGENCES[name].h(RATIOS.log()).diff() < 0).all()


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


@processes
@NAMES
def test_the_weighed_direction_is_the_divergences_gradient(process: Process, name: DivergenceName):
    check_direction_is_the_divergences_gradient(process, name)


@processes
def test_forward_kl_has_its_closed_form(process: Process):
    """E r (fake - real) = sigma^2 Sigma_fake^-1 (mean_fake - mean_real)."""
    noise = process.sigma(torch.tensor(T, dtype=torch.float64)) ** 2
    fake = marginals(process, LINE, T)[1].covariance_matrix
    close(weighed(process, "forward_kl")[0], noise * torch.linalg.solve(fake, LINE.other_mean - LINE.mean))


# f-distill


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


@processes
@NAMES
def test_f_distill_follows_its_formula(process: Process, name: DivergenceName):
    check_f_distill(process, name)


def test_f_distill_clips_the_ratio_before_it_is_normalised():
    check_f_distill(Flow(), "forward_kl", (0.5, 1.2))


@processes
def test_f_distill_of_reverse_kl_is_dmd2(process: Process):
    noises = (*quasi_random(2), quasi_random(2)[1].flip(0))
    objectives: list[Objective] = [FDistill(divergence="reverse_kl"), DMD2()]
    first, second = (slopes(judged(process), objective, scripted(*noises), "dm") for objective in objectives)
    close(first, second, tolerance=1e-12)


@pytest.mark.parametrize("kind", [FDistill, UniInstruct])
@pytest.mark.parametrize("gan", [GAN(kind="hinge"), GAN(kind="relativistic"), GAN(0.0)])
def test_a_discriminator_that_gives_no_ratio_is_refused(kind: type[Objective], gan: GAN):
    with pytest.raises(ValueError, match=r"set gan\.kind=logistic and a weight above 0"):
        kind(gan=gan)


@pytest.mark.parametrize("kind", [FDistill, UniInstruct])
@pytest.mark.parametrize("clip", [(0.0, 20.0), (20.0, 0.1)])
def test_bounds_that_no_ratio_lies_between_are_refused(kind: type[Objective], clip: tuple[float, float]):
    with pytest.raises(ValueError, match="need 0 < low < high"):
        kind(clip=clip)


@pytest.mark.parametrize("keep", [-0.1, 1.0])
def test_means_that_never_move_are_refused(keep: float):
    with pytest.raises(ValueError, match="need 0 <= keep < 1"):
        FDistill(keep=keep)


# The means of ratios


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


def test_ratios_are_normalised_at_their_noise_level():
    check_ratio_means()


def test_f_distill_keeps_the_means_that_it_is_told_to():
    roles = judged(Flow())
    means = roles["ratio_means"].means
    moved = []
    for keep in (0.0, 0.75):
        means.fill_(1.0)
        slopes(roles, FDistill(keep=keep), Batch(REAL.uncond(64), (2,), **streams()), "dm")
        moved.append(means - 1)
    close(moved[1], 0.25 * moved[0])
    assert (moved[0] != 0).any()
