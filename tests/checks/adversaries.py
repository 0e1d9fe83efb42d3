"""Adversaries: signs, weights, noises and penalties, against analytic densities."""

import math

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    REAL,
    clean,
    close,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from torch import Tensor, nn
from torch.nn.functional import sigmoid

from fastgen.models.conditioning import Conditioning
from fastgen.objectives import Batch
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.parts.gan import GAN, LOSSES
from fastgen.process import Flow, Process
from fastgen.proofs.analytic import ExactRatio


class Judge(nn.Module):
    """A linear discriminator, zero at first, that remembers its question."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        self.x_t, self.t = x_t.detach(), t
        return (x_t @ self.weight)[:, None]


def check_gan_gradient(process: Process) -> None:
    """- gan (1 - sigmoid(logit)) alpha (score_real - score_fake): towards larger logits."""
    z, eps, other = *quasi_random(2), quasi_random(2)[1].flip(0)
    roles = gaussian_roles(process)
    roles.members["discriminator"] = ExactRatio(roles["real_score"], roles["fake_score"])
    measured = slopes(roles, DMD2(gan=GAN(0.7, times=only(0.6))), scripted(z, eps, other), "gan")
    t = torch.tensor(0.6, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x_t = alpha * (OTHER_MEAN + z @ OTHER_FACTOR.T) + sigma * other
    real, fake = (
        torch.distributions.MultivariateNormal(alpha * mean, alpha**2 * covariance + sigma**2 * torch.eye(2))
        for mean, covariance in ((MEAN, COVARIANCE), (OTHER_MEAN, OTHER_FACTOR @ OTHER_FACTOR.T))
    )
    logit = real.log_prob(x_t) - fake.log_prob(x_t)
    scores = [torch.linalg.solve(law.covariance_matrix, (law.mean - x_t).T).T for law in (real, fake)]
    grad = -0.7 * sigmoid(-logit)[:, None] * alpha * (scores[0] - scores[1])
    close(measured, (grad.mean(dim=0), grad.T @ z / len(z)))


def judged(*, real: Tensor, fake: Tensor, gan_fake: float) -> tuple[Judge, float]:
    """The judge after a backward pass of the fake score's turn, and the GAN term."""
    judge = Judge()
    roles = gaussian_roles(Flow(), discriminator=judge)
    batch = scripted(real, real=real)
    batch = Batch(batch.cond, (2,), **streams(), real=real)
    batch.landing = clean(batch, fake)
    with roles.training(("fake_score", "discriminator")):
        term = DMD2(gan=GAN(learned=gan_fake)).fake_score(roles, batch)["gan"]
        term.backward()
    return judge, term.item()


def check_discriminator_gradient() -> None:
    """At zero logits the descent direction is half the mean of the real minus that of the fake samples."""
    noise = torch.randn(64, 2, dtype=torch.float64)
    judge, term = judged(real=noise + 5, fake=noise - 5, gan_fake=0.1)
    real, fake = judge.x_t.chunk(2)
    assert term == pytest.approx(0.1 * 2 * math.log(2))
    close(judge.weight.grad, -0.05 * (real.mean(dim=0) - fake.mean(dim=0)))
    assert (judge.weight.grad < 0).all(), "descent must raise the logits of the real samples, which lie at +5"


def check_real_and_fake_are_noised_independently() -> None:
    x0 = torch.randn(2048, 2, dtype=torch.float64)
    judge, _ = judged(real=x0, fake=x0, gan_fake=1.0)
    t = judge.t.chunk(2)
    eps = [(x_t - (1 - u)[:, None] * x0) / u[:, None] for x_t, u in zip(judge.x_t.chunk(2), t, strict=True)]
    assert abs(torch.corrcoef(torch.stack(t))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([e.flatten() for e in eps]))[0, 1]) < 0.1
    close(torch.cat(eps).std(), torch.ones((), dtype=torch.float64), tolerance=0.05)


def normal(mean: float, variance: float, count: int = 20_001) -> Tensor:
    """Evenly weighted points whose averages are a Gaussian's expectations."""
    u = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return mean + math.sqrt(2 * variance) * torch.erfinv(2 * u - 1)


def log_ratio(x: Tensor) -> Tensor:
    """log N(x; 0.3, 0.8) - log N(x; 0.9, 1.2)."""
    return -((x - 0.3) ** 2) / 1.6 + (x - 0.9) ** 2 / 2.4 - 0.5 * math.log(0.8 / 1.2)


def ratio_slopes(sign: float) -> Tensor:
    """Slopes of the logistic loss at sign times the exact log-ratio, by what is added to it: 1, x and x^2."""
    added = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    logits = [
        sign * log_ratio(x) + torch.stack([x**0, x, x**2], dim=1) @ added for x in (normal(0.3, 0.8), normal(0.9, 1.2))
    ]
    return torch.autograd.grad(LOSSES["logistic"](*logits), added)[0]


def check_logistic_optimum() -> None:
    close(ratio_slopes(1.0), torch.zeros(3, dtype=torch.float64), tolerance=1e-3)
    assert ratio_slopes(-1.0)[1:].abs().min() > 0.5


TILT = torch.tensor([0.7, -0.4], dtype=torch.float64)


def check_generator_kind(kind: str, process: Process, *, paired: bool = False) -> None:
    """Of a linear judge w: - alpha w under hinge, and by sigmoid(D(real) - D(fake)) under relativistic."""
    z, eps = quasi_random(2, 256)
    noises = [eps.flip(0), eps.roll(7, 0)]
    judge, real = Judge(), torch.randn(256, 2, dtype=torch.float64)
    judge.weight.data += TILT
    gan = GAN(0.5, kind=kind, times=only(0.6), paired=paired)
    measured = slopes(
        gaussian_roles(process, discriminator=judge), DMD2(gan=gan), scripted(z, eps, *noises, real=real), "gan"
    )
    t = torch.tensor(0.6, dtype=torch.float64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    fake = alpha * (OTHER_MEAN + z @ OTHER_FACTOR.T) + sigma * noises[0]
    seen = alpha * real + sigma * noises[0 if paired else 1]
    share = sigmoid((seen - fake) @ TILT) if kind == "relativistic" else torch.ones(256, dtype=torch.float64)
    grad = -0.5 * share[:, None] * alpha * TILT
    close(measured, (grad.mean(dim=0), grad.T @ z / len(z)))


class Bowl(Judge):
    """D(x) = w.x + |x|^2 curvature / 2."""

    curvature = 0.3

    def forward(self, x_t: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return super().forward(x_t, t, cond) + 0.5 * self.curvature * x_t.square().sum(dim=1, keepdim=True)


def penalised(judge: Judge, gan: GAN, count: int = 512) -> tuple[Tensor, Tensor, Tensor]:
    """The term "r1", its slope by the judge's weight, and the real samples that it was asked about."""
    judge.weight.data += TILT
    real = torch.randn(count, 2, dtype=torch.float64)
    batch = Batch(REAL.uncond(count), (2,), **streams(), real=real)
    batch.landing = clean(batch, real + 1)
    seen: list[Tensor] = []
    judge.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    roles = gaussian_roles(Flow(), discriminator=judge)
    with roles.training(("fake_score", "discriminator")):
        term = DMD2(gan=gan).fake_score(roles, batch)["r1"]
        (slope,) = torch.autograd.grad(term, judge.weight)
    return term, slope, seen[0][:count]


def check_gradient_penalty() -> None:
    """learned gamma / 2 mean|w + c x_t|^2 at real samples alone."""
    term, slope, x_t = penalised(Bowl(), GAN(learned=0.2, r1=3.0))
    gradient = TILT + Bowl.curvature * x_t
    close(term, 0.2 * 1.5 * gradient.square().sum(dim=1).mean())
    close(slope, 0.2 * 3.0 * gradient.mean(dim=0))


def check_pairs_share_times_and_noises() -> None:
    real, fake = torch.randn(2, 64, 2, dtype=torch.float64)
    judge, batch = Judge(), Batch(REAL.uncond(64), (2,), **streams(), real=real)
    batch.landing = clean(batch, fake)
    DMD2(gan=GAN(paired=True)).fake_score(gaussian_roles(Flow(), discriminator=judge), batch)
    (x_real, x_fake), (t, u) = judge.x_t.chunk(2), judge.t.chunk(2)
    assert torch.equal(t, u)
    close(x_real - x_fake, (1 - t)[:, None] * (real - fake))
