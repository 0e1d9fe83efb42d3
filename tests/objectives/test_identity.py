"""Score identity distillation and score implicit matching against closed forms.

What matters most is written as `check_*` functions; `test_mutants_identity.py` runs them on objectives made wrong.
"""

import math
from dataclasses import replace

import pytest
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
    processes,
    quasi_random,
    scripted,
    slopes,
    streams,
)
from quadrature import LINE, SQUARE, leaves, marginals, quadrature
from recorder import Recorder
from rounding import assert_alike
from torch import Tensor
from torch.nn.functional import softplus

from fastgen.models.calls import look
from fastgen.models.roles import Roles
from fastgen.objectives import Batch
from fastgen.objectives.distribution import sid
from fastgen.objectives.distribution.sid import SiD, SiDLSG
from fastgen.objectives.distribution.sida import FewStepSiD, SiDA
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed, LongShort
from fastgen.objectives.parts.matching import compare
from fastgen.process import Flow, Process, Trig, even_grid
from fastgen.proofs.analytic import ExactDenoiser, ExactRatio
from fastgen.proofs.toy import toy_batch, toy_roles

T = 0.55


def levels(process: Process, t: float = T) -> tuple[Tensor, Tensor]:
    level = torch.tensor(t, dtype=torch.float64)
    return process.alpha(level), process.sigma(level)


def plain(alpha: float, t: float = T) -> SiD:
    return SiD(alpha=alpha, weight="none", times=only(t))


# SiD


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


@processes
@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.2])
def test_sid_has_its_closed_form(process: Process, alpha: float):
    check_sid_closed_form(process, alpha)


REFERENCE = {  # alpha: value, derivatives by mean and factor
    0.5: (0.038761322, 0.102264119, 0.076703226),
    1.0: (0.0, 0.078609231, 0.066671863),
    1.2: (-0.015504529, 0.069147276, 0.062659318),
}


@pytest.mark.parametrize("alpha", REFERENCE)
def test_sid_gives_the_reference_numbers(alpha: float):
    t = Trig().time_of(torch.tensor(2 * math.log(0.8 / 0.6))).item()
    roles, batch = quadrature(Trig(), LINE, nodes=6)
    measured = slopes(roles, plain(alpha, t), batch, "sid")
    z, eps = cubature(1)
    value = plain(alpha, t).generator(roles, replace(batch, cond=batch.cond.index(torch.arange(4)), script=[z, eps]))
    close(torch.stack([value["sid"], *(x.squeeze() for x in measured)]), torch.tensor(REFERENCE[alpha]).double())


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


@processes
def test_half_is_the_unbiased_gradient_of_the_fisher_divergence(process: Process):
    check_half_is_the_fisher_gradient(process)


@processes
def test_without_the_graph_through_the_scores_only_a_direction_is_left(
    process: Process, monkeypatch: pytest.MonkeyPatch
):
    right = slopes(gaussian_roles(process), plain(1.0), scripted(*cubature(2)), "sid")
    monkeypatch.setattr(sid, "through", look)
    measured = slopes(gaussian_roles(process), plain(1.0), scripted(*cubature(2)), "sid")
    real, fake = (law.covariance_matrix.inverse() for law in marginals(process, SQUARE, T))
    noise = levels(process)[1] ** 2
    close(measured, (noise * real @ (OTHER_MEAN - MEAN) / 2, noise * (real - fake) @ OTHER_FACTOR / 2))
    assert (right[0] - measured[0]).norm() > 0.02 * right[0].norm(), "the fixture does not tell them apart"


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


@processes
def test_sids_weight_takes_no_gradient(process: Process):
    check_weight_is_detached(process)


# SiDA, and its neighbours in the family


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


@processes
def test_sidas_gan_term_has_each_samples_weight(process: Process):
    check_gan_is_weighted_per_sample(process)


def check_gan_waits() -> None:
    objective, roles = SiDA(gan=GAN(start=100)), judged_roles(Flow())
    for images, terms in ((0, {"sid"}), (99, {"sid"}), (100, {"sid", "gan"})):
        batch = Batch(PLANE.uncond(4), (2,), **streams(), images=images)
        assert set(objective.generator(roles, batch)) == terms


def test_sidas_gan_term_begins_when_told():
    check_gan_waits()


def same_turns(first: SiD | SiDA, second: SiD | SiDA) -> None:
    """Both have the same cycle, and equal losses and gradients in every turn of it."""
    assert first.cycle == second.cycle
    for turn in dict.fromkeys(first.cycle):
        gradients = []
        for objective in (first, second):
            roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
            with roles.training(turn):
                terms = getattr(objective, turn[0])(roles, toy_batch(PLANE, 32, *streams().values()))
                sum(terms.values()).backward()
            gradients.append([p.grad for role in turn for p in roles.parameters(role)])
        for ours, theirs in zip(*gradients, strict=True):
            assert_alike(ours, theirs)
        assert any(gradient.abs().sum() > 0 for gradient in gradients[0])


def test_sida_without_gan_is_sid_at_one():
    same_turns(SiDA(gan=GAN(0.0)), SiD(alpha=1.0))


def test_long_short_guidance_of_scale_one_is_sid_at_one():
    lsg = SiDLSG(guidance=LongShort(1.0))
    same_turns(lsg, SiD(alpha=1.0, times=lsg.times, fake_times=lsg.fake_times, fake_space="eps"))
    assert not lsg.needs.null


def test_one_step_without_guidance_is_sida():
    few = FewStepSiD(guidance=Fixed(1.0))
    same_turns(few, SiDA(gan=few.gan, times=few.times, fake_times=few.fake_times, fake_space="eps"))


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


def test_zero_guidance_compares_with_an_unconditional_fake_score():
    check_zero_guidance()
