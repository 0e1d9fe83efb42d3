"""Score identities and score implicit matching, against closed forms and quadrature."""

import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    PLANE,
    believed,
    clean,
    close,
    cubature,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from quadrature import SQUARE, Pair, leaves, marginals, quadrature
from recorder import Recorder
from torch import Tensor
from torch.nn.functional import softplus

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.objectives import Batch
from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.distribution.sida import FewStepSiD, SiDA
from fastgen.objectives.distribution.sim import SIM, ScoreDistance
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.matching import compare
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactDenoiser, ExactRatio
from fastgen.proofs.toy import toy_batch

T = 0.55


def levels(process: Process, t: float = T) -> tuple[Tensor, Tensor]:
    level = torch.tensor(t, dtype=torch.float64)
    return process.alpha(level), process.sigma(level)


def plain(alpha: float, t: float = T) -> SiD:
    return SiD(alpha=alpha, weight="none", times=only(t))


def check_sid_closed_form(process: Process, alpha: float) -> None:
    """Value (1 - a) E|real - fake|^2, and the gradients by matrices; a mean over two dimensions halves them."""
    z, eps = cubature(2)
    mean, factor = slopes(gaussian_roles(process), plain(alpha), scripted(z, eps), "sid")
    value = plain(alpha).generator(gaussian_roles(process), scripted(z, eps))["sid"]
    real, fake = (law.covariance_matrix.inverse() for law in marginals(process, SQUARE, T))
    (scale, sigma), shift, k = levels(process), real @ (OTHER_MEAN - MEAN), fake - real
    fisher = sigma**4 / scale**2 * torch.trace(k @ fake.inverse() @ k) + sigma**4 * shift @ shift
    close(value, (1 - alpha) * fisher / 2)
    close(mean, sigma**4 * (real - (1 - 2 * alpha) * k) @ shift / 2)
    close(factor, -(sigma**4) * (k @ real + real @ k + 2 * alpha * k @ k) @ OTHER_FACTOR / 2)


def check_half_is_the_fisher_gradient(process: Process) -> None:
    """Autograd of E|real - fake|^2 / 2 as a function of the generator's law, the best fake score included."""
    mean, factor = leaves(SQUARE)
    real, fake = (law.covariance_matrix for law in marginals(process, SQUARE, T, parameters=(mean, factor)))
    (scale, sigma), k = levels(process), fake.inverse() - real.inverse()
    shift = real.inverse() @ (mean - MEAN)
    fisher = sigma**4 / scale**2 * torch.trace(k @ fake @ k) + sigma**4 * shift @ shift
    exact = torch.autograd.grad(fisher / 2, [mean, factor])
    measured = slopes(gaussian_roles(process), plain(0.5), scripted(*cubature(2)), "sid")
    for ours, wanted in zip(measured, exact, strict=True):
        close(ours, wanted / 2)


def frozen(process: Process, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Real and fake belief by plain linear algebra, with the graph to x_t alone."""
    scale, sigma = levels(process)
    fake = believed(OTHER_MEAN, OTHER_FACTOR @ OTHER_FACTOR.T, x_t, scale, sigma)
    return believed(MEAN, COVARIANCE, x_t, scale, sigma), fake


def check_weight_is_detached(process: Process) -> None:
    z, eps = quasi_random(2)
    measured = slopes(gaussian_roles(process), SiD(times=only(T)), scripted(z, eps), "sid")
    mean, factor = leaves(SQUARE)
    x0 = mean + z @ factor.T
    scale, sigma = levels(process)
    real, fake = frozen(process, scale * x0 + sigma * eps)
    weight = 2 / (x0 - real).abs().sum(dim=1, keepdim=True).detach()
    loss = (weight * (real - fake) * (real - x0 - 1.2 * (real - fake))).mean()
    close(measured, torch.autograd.grad(loss, [mean, factor]))


def judged_roles(process: Process) -> Roles:
    roles = gaussian_roles(process)
    roles.members["discriminator"] = ExactRatio(roles["real_score"], roles["fake_score"])
    return roles


def check_gan_is_weighted_per_sample(process: Process) -> None:
    """0.7 w(x0, x_t) softplus(-log ratio) at noises of its own, w detached."""
    z, eps, other = *quasi_random(2), quasi_random(2)[1].flip(0)
    objective = SiDA(gan=GAN(0.7, times=only(0.4)), times=only(T))
    measured = slopes(judged_roles(process), objective, scripted(z, eps, other), "gan")
    mean, factor = leaves(SQUARE)
    x0 = mean + z @ factor.T
    scale, sigma = levels(process)
    weight = 2 / (x0 - frozen(process, scale * x0 + sigma * eps)[0]).abs().sum(dim=1).detach()
    (scale, sigma), (real, fake) = levels(process, 0.4), marginals(process, SQUARE, 0.4)
    x_t = scale * x0 + sigma * other
    loss = 0.7 * (weight * softplus(fake.log_prob(x_t) - real.log_prob(x_t))).mean()
    close(measured, torch.autograd.grad(loss, [mean, factor]))


def check_gan_waits() -> None:
    objective, roles = SiDA(gan=GAN(start=100)), judged_roles(Flow())
    for images, terms in ((0, {"sid"}), (99, {"sid"}), (100, {"sid", "gan"})):
        batch = Batch(PLANE.uncond(4), (2,), **streams(), images=images)
        assert set(objective.generator(roles, batch)) == terms


def check_zero_guidance() -> None:
    """The real score sees the class and the fake one does not, neither when they are compared nor when it learns."""
    real, fake = (Recorder(ExactDenoiser(Flow(), PLANE)) for _ in range(2))
    roles = gaussian_roles(Flow(), real_score=real, fake_score=fake)
    batch = toy_batch(PLANE, 64, *streams().values())
    scores = compare(look, FewStepSiD(), roles, batch, clean(batch, batch.x0))
    given, null = real.inner, batch.cond.unconditional
    close(scores.real.x0, given(scores.x_t, scores.t, batch.cond).x0)
    close(scores.fake.x0, given(scores.x_t, scores.t, null).x0)
    gap = given(scores.x_t, scores.t, batch.cond).x0 - given(scores.x_t, scores.t, null).x0
    assert gap.abs().max() > 0.1, "a fake score that knows the data's law leaves the teacher's guidance"
    FewStepSiD(gan=GAN(0.0)).fake_score(roles, batch)
    assert all((call.cond.batched["class_labels"] == -1).all() for call in fake.calls)
    assert all((call.cond.batched["class_labels"] >= 0).all() for call in real.calls)


def implicit(distance: ScoreDistance, huber: float = 0.8) -> SIM:
    return SIM(distance=distance, times=only(T), **({"huber": huber} if distance == "pseudo_huber" else {}))


DISTANCES = {
    "pseudo_huber": lambda n: (n + 0.8**2).sqrt(),
    "square": lambda n: n / 2,
    "quartic": lambda n: n**2 / 2,
}


def check_sim_theorem(process: Process, pair: Pair, distance: ScoreDistance, *, nodes: int) -> None:
    """Autograd of E d(real - fake_theta) at fixed x_t, through the fake score of the generator's own law.

    That is the left side of the score-divergence theorem. On the right the whole of d'(y) (fake - x0) moves with
    x_t, d' and its denominator included: the identity E[u(x_t) (fake - x0)] = 0, which it differentiates by the
    generator, holds for functions u of x_t.
    """
    roles, batch = quadrature(process, pair, nodes=nodes)
    (z, eps), weights = batch.script, roles["generator"].weights
    measured = slopes(roles, implicit(distance), batch, "sim")
    scale, sigma = levels(process)
    x_t = scale * (pair.other_mean + z @ pair.other_factor.T) + sigma * eps
    mean, factor = leaves(pair)
    real, fake = marginals(process, pair, T, parameters=(mean, factor))
    gaps = (torch.linalg.solve(law.covariance_matrix, (law.mean - x_t).T).T for law in (real, fake))
    gap = (next(gaps) - next(gaps)) * sigma**2 / scale
    divergence = (weights * DISTANCES[distance](gap.square().mean(dim=1))).sum()
    close(measured, torch.autograd.grad(divergence, [mean, factor]), tolerance=1e-5)
