"""The GAN of DMD2: signs, weights and noises."""

import math

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    PLANE,
    REAL,
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
from torch import Tensor, nn
from torch.nn.functional import sigmoid

from fastgen.analytic import ExactRatio
from fastgen.models.conditioning import Conditioning
from fastgen.objectives import (
    Batch,
)
from fastgen.objectives.dmd2 import DMD2
from fastgen.objectives.gan import GAN
from fastgen.process import Flow, Process, even_grid
from fastgen.toy import toy_batch, toy_roles


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


@processes
def test_the_gan_term_raises_the_logit(process: Process):
    check_gan_gradient(process)


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


def test_the_discriminator_learns_that_large_is_real():
    check_discriminator_gradient()


def check_real_and_fake_are_noised_independently() -> None:
    x0 = torch.randn(2048, 2, dtype=torch.float64)
    judge, _ = judged(real=x0, fake=x0, gan_fake=1.0)
    t = judge.t.chunk(2)
    eps = [(x_t - (1 - u)[:, None] * x0) / u[:, None] for x_t, u in zip(judge.x_t.chunk(2), t, strict=True)]
    assert abs(torch.corrcoef(torch.stack(t))[0, 1]) < 0.1
    assert abs(torch.corrcoef(torch.stack([e.flatten() for e in eps]))[0, 1]) < 0.1
    close(torch.cat(eps).std(), torch.ones((), dtype=torch.float64), tolerance=0.05)


def test_real_and_fake_are_noised_independently():
    check_real_and_fake_are_noised_independently()


@pytest.mark.parametrize("turn", ["generator", "fake_score"])
def test_gan_weights_scale_their_terms_alone(turn: str):
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    first, second = (
        getattr(DMD2(gan=GAN(gan, learned=gan)), turn)(roles, toy_batch(PLANE, 16, *streams().values()))
        for gan in (0.1, 0.3)
    )
    torch.testing.assert_close(second["gan"], 3 * first["gan"])
    assert all(torch.equal(first[term], second[term]) for term in first if term != "gan")


def test_without_a_gan_dmd2_needs_neither_images_nor_a_discriminator():
    objective, roles = DMD2(gan=GAN(0.0)), gaussian_roles(Flow())
    assert "discriminator" not in roles
    for turn in (objective.generator, objective.fake_score):
        assert "gan" not in turn(roles, Batch(REAL.uncond(8), (2,), **streams()))
    with pytest.raises(ValueError, match='list "images"'):
        DMD2().fake_score(gaussian_roles(Flow(), discriminator=Judge()), Batch(REAL.uncond(8), (2,), **streams()))
