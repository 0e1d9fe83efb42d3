"""The ground truth itself, in float64: exact denoisers against quadrature, autograd and an independent integrator."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from fastgen.process import EDM, Discrete, Flow, Process, Trig
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, ExactRatio, Mixture

PROCESSES = {
    "vp": Discrete(DDIMScheduler().alphas_cumprod),
    "flow": Flow(),
    "edm": EDM(),
    "trig": Trig(),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
PLANE = Mixture(
    torch.tensor([[1.0, 0.0], [-0.5, 1.0], [-0.5, -1.5]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]], [[0.25, -0.2], [-0.2, 0.3]]]),
    weights=torch.tensor([0.5, 0.3, 0.2]),
    labels=torch.tensor([0, 1, 1]),
)
LINE = Mixture(
    torch.tensor([[-1.0], [0.4], [1.5]]),
    torch.tensor([[[0.04]], [[0.3]], [[0.09]]]),
    weights=torch.tensor([0.3, 0.5, 0.2]),
)
GAUSSIAN = Mixture(torch.tensor([[0.5, -1.0]]), torch.tensor([[[0.6, 0.3], [0.3, 0.4]]]))


def noised(process: Process, data: Mixture, *, low: float = 0.2, count: int = 64) -> tuple[Tensor, Tensor]:
    """Samples x_t [count, d] and their times [count], evenly from `low` to 0.95."""
    t = torch.linspace(low, 0.95, count, dtype=torch.float64)
    x0 = data.sample(count, torch.Generator().manual_seed(0))
    return process.renoise(x0, t, torch.randn_like(x0)), t


def cubature(dim: int) -> Tensor:
    """[2 dim, dim]: equally weighted points with the mean 0 and covariance 1 of unit noise, exactly."""
    axes = math.sqrt(dim) * torch.eye(dim, dtype=torch.float64)
    return torch.cat([axes, -axes])


@processes
def test_the_score_is_the_gradient_of_log_prob(process: Process):
    exact = ExactDenoiser(process, PLANE)
    x_t, t = noised(process, PLANE)
    x_t.requires_grad_()
    for cond in (PLANE.uncond(64), PLANE.cond(torch.arange(64) % 2)):
        (slope,) = torch.autograd.grad(exact.log_prob(x_t, t, cond).sum(), x_t)
        torch.testing.assert_close(exact(x_t, t, cond).score, slope, rtol=1e-8, atol=1e-8)


@processes
def test_the_denoiser_and_the_density_are_the_integrals_over_x0(process: Process):
    exact = ExactDenoiser(process, LINE)
    x_t, t = noised(process, LINE, low=0.6, count=9)
    x0 = np.linspace(-8, 8, 40_001)
    deviations = LINE.covariances[:, 0, 0].sqrt().numpy()
    prior = (LINE.weights.numpy() * norm.pdf(x0[:, None], LINE.means[:, 0].numpy(), deviations)).sum(axis=1)
    alpha, sigma = process.alpha(t).numpy()[:, None], process.sigma(t).numpy()[:, None]
    joint = prior * norm.pdf(x_t.numpy(), alpha * x0, sigma)
    density = np.trapezoid(joint, x0, axis=1)
    mean = np.trapezoid(joint * x0, x0, axis=1) / density
    np.testing.assert_allclose(exact(x_t, t, LINE.uncond(9)).x0[:, 0].numpy(), mean, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(exact.log_prob(x_t, t, LINE.uncond(9)).exp().numpy(), density, rtol=1e-7)


@processes
def test_a_gaussian_is_linear_and_splitting_it_changes_nothing(process: Process):
    x_t, t = noised(process, GAUSSIAN)
    cond = GAUSSIAN.uncond(64)
    whole = ExactDenoiser(process, GAUSSIAN)
    twins = Mixture(GAUSSIAN.means.expand(2, -1), GAUSSIAN.covariances.expand(2, -1, -1))
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    mean, covariance = GAUSSIAN.means[0], GAUSSIAN.covariances[0]
    noisy = alpha[..., None] ** 2 * covariance + sigma[..., None] ** 2 * torch.eye(2)
    whitened = torch.linalg.solve(noisy, x_t - alpha * mean)
    expected = mean + alpha * whitened @ covariance
    for denoiser in (whole, ExactDenoiser(process, twins)):
        torch.testing.assert_close(denoiser(x_t, t, cond).x0, expected)
    torch.testing.assert_close(ExactDenoiser(process, twins).log_prob(x_t, t, cond), whole.log_prob(x_t, t, cond))


@processes
def test_a_class_is_the_mixture_of_its_components(process: Process):
    exact = ExactDenoiser(process, PLANE)
    x_t, t = noised(process, PLANE)
    second = torch.ones(64, dtype=torch.long)
    alone = Mixture(PLANE.means[1:], PLANE.covariances[1:], weights=torch.tensor([0.6, 0.4]))
    torch.testing.assert_close(
        exact(x_t, t, PLANE.cond(second)).x0, ExactDenoiser(process, alone)(x_t, t, alone.uncond(64)).x0
    )
    shares = [exact.log_prob(x_t, t, PLANE.cond(label * second)).exp() for label in (0, 1)]
    null = PLANE.cond(second).unconditional
    torch.testing.assert_close(exact.log_prob(x_t, t, null).exp(), 0.5 * shares[0] + 0.5 * shares[1])
    assert torch.equal(exact(x_t, t, null).x0, exact(x_t, t, PLANE.uncond(64)).x0)


@processes
def test_guidance_is_linear_in_the_scores(process: Process):
    exact = ExactDenoiser(process, PLANE)
    x_t, t = noised(process, PLANE)
    cond = PLANE.cond(torch.arange(64) % 2)
    with_class, without = exact(x_t, t, cond), exact(x_t, t, cond.unconditional)
    torch.testing.assert_close(
        exact.guide(with_class, without, 3.5).score,
        without.score + 3.5 * (with_class.score - without.score),
    )
    torch.testing.assert_close(exact.guide(with_class, without, 1.0).eps, with_class.eps)


def integrated(exact: ExactDenoiser, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """SciPy's solution of dx / d clock = velocity from t to s for one sample x [1, d]."""

    def velocity(clock: float, point: np.ndarray) -> np.ndarray:
        now = exact.process.from_clock(torch.tensor([clock], dtype=torch.float64))
        prediction = exact(torch.from_numpy(point)[None], now, exact.data.uncond(1))
        return prediction.velocity[0].numpy()

    span = (exact.process.clock(t).item(), exact.process.clock(s).item())
    path = solve_ivp(velocity, span, x[0].numpy(), method="LSODA", rtol=1e-8, atol=1e-8)
    return torch.from_numpy(path.y[:, -1])[None]


@pytest.mark.usefixtures("unchecked")
@processes
@pytest.mark.parametrize("data", [GAUSSIAN, PLANE], ids=["gaussian", "mixture"])
def test_the_flow_map_solves_the_probability_flow(process: Process, data: Mixture):
    exact = ExactDenoiser(process, data)
    t, s = torch.tensor([0.9], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    x_t = process.renoise(data.sample(1, torch.Generator().manual_seed(1)), t, torch.tensor([[0.4, -1.1]]))
    tolerance = 2e-6 if data is GAUSSIAN else 6e-4
    there = exact.flow_map(x_t, t, s, data.uncond(1))
    torch.testing.assert_close(there, integrated(exact, x_t, t, s), rtol=0, atol=tolerance)


def transported(process: Process, x: np.ndarray, t: float, s: float) -> np.ndarray:
    """F_s^-1(F_t(x)) of LINE: in one dimension the probability flow keeps the quantile."""

    def cdf(point: float, time: float) -> float:
        level = torch.tensor(time, dtype=torch.float64)
        alpha, sigma = process.alpha(level).item(), process.sigma(level).item()
        deviation = np.sqrt(alpha**2 * LINE.covariances[:, 0, 0].numpy() + sigma**2)
        return float(LINE.weights.numpy() @ norm.cdf(point, alpha * LINE.means[:, 0].numpy(), deviation))

    def quantile(p: float) -> float:
        return brentq(lambda y: cdf(y, s) - p, -400, 400, xtol=1e-12)

    return np.array([quantile(cdf(point, t)) for point in x])


@pytest.mark.usefixtures("unchecked")
@processes
@pytest.mark.parametrize("s", [0.0, 0.3])
def test_the_flow_map_of_a_mixture_keeps_the_quantile(process: Process, s: float):
    exact = ExactDenoiser(process, LINE)
    t = torch.full((7,), 0.95, dtype=torch.float64)
    x_t, _ = noised(process, LINE, low=0.95, count=7)
    wanted = torch.from_numpy(transported(process, x_t[:, 0].numpy(), 0.95, s))
    errors = []
    for steps in (100, 200):
        x_s = exact.flow_map(x_t, t, torch.full_like(t, s), LINE.uncond(7), steps=steps)[:, 0]
        errors.append((x_s - wanted).abs().max().item())
    assert errors[1] < 6e-4
    assert errors[1] < 0.35 * errors[0], "second order: twice the steps leave a quarter of the error"


def test_the_ratio_is_the_difference_of_log_densities():
    process = Flow()
    real, fake = ExactDenoiser(process, PLANE), ExactDenoiser(process, GAUSSIAN)
    x_t, t = noised(process, PLANE)
    cond = PLANE.uncond(64)
    expected = real.log_prob(x_t, t, cond) - fake.log_prob(x_t, t, cond)
    discriminator = ExactRatio(real, fake)
    assert torch.equal(discriminator.ratio(x_t, t, cond), expected)
    assert torch.equal(discriminator(x_t, t, cond), expected[:, None])
    x_t.requires_grad_()
    (slope,) = torch.autograd.grad(discriminator.ratio(x_t, t, cond).sum(), x_t)
    torch.testing.assert_close(slope, real(x_t, t, cond).score - fake(x_t, t, cond).score)


@processes
@pytest.mark.parametrize("t_first", [1.0, 0.7])
def test_an_affine_generator_draws_from_its_law(process: Process, t_first: float):
    generator = AffineGenerator(process, torch.tensor([0.3, -2.0]), torch.tensor([[0.5, 0.0], [0.7, 1.2]]))
    z = cubature(2)
    t = torch.full((len(z),), t_first, dtype=torch.float64)
    law = generator.law()
    x0 = generator(process.prior(z, t), t, law.uncond(len(z))).x0.detach()
    torch.testing.assert_close(x0.mean(dim=0), law.means[0])
    torch.testing.assert_close((x0 - law.means).T @ (x0 - law.means) / len(x0), law.covariances[0])


@pytest.mark.parametrize("label", [None, 1])
def test_samples_have_the_mixtures_moments(label: int | None):
    count = 40_000
    labels = None if label is None else torch.full((count,), label)
    chosen = torch.ones(3, dtype=torch.bool) if label is None else PLANE.labels == label
    weights = PLANE.weights * chosen
    weights = weights / weights.sum()
    mean = weights @ PLANE.means
    offset = PLANE.means - mean
    second = PLANE.covariances + offset[:, :, None] * offset[:, None]
    x = PLANE.sample(count, torch.Generator().manual_seed(0), labels=labels)
    torch.testing.assert_close(x.mean(dim=0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.T.cov(), torch.einsum("k,kij->ij", weights, second), rtol=0, atol=0.03)
