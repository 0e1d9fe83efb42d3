"""The GAN of DMD2: signs, weights and noises."""

import math

import pytest
import torch
from adversaries import (
    Judge,
    check_discriminator_gradient,
    check_gan_gradient,
    check_generator_kind,
    check_gradient_penalty,
    check_logistic_optimum,
    check_pairs_share_times_and_noises,
    check_real_and_fake_are_noised_independently,
    penalised,
)
from closed_forms import PLANE, REAL, clean, gaussian_roles, processes, streams

from fastgen.objectives import Batch
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.parts.gan import GAN, LOSSES, check_gives_ratio
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles


@processes
def test_the_gan_term_raises_the_logit(process: Process):
    check_gan_gradient(process)


def test_the_discriminator_learns_that_large_is_real():
    check_discriminator_gradient()


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
    with pytest.raises(ValueError, match="set images=True"):
        DMD2().fake_score(gaussian_roles(Flow(), discriminator=Judge()), Batch(REAL.uncond(8), (2,), **streams()))


# Kinds


def test_the_logistic_optimum_is_the_log_ratio_of_real_to_fake():
    check_logistic_optimum()


REAL_LOGITS, FAKE_LOGITS = torch.tensor([[2.0], [0.5]]), torch.tensor([[-2.0], [0.5]])


@pytest.mark.parametrize(
    ("kind", "value", "by_real", "by_fake"),
    [
        ("hinge", (0 + 0.5) / 2 + (0 + 1.5) / 2, [0.0, -0.5], [0.0, 0.5]),
        (
            "logistic",
            (math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.5))) / 2
            + (math.log1p(math.exp(-2)) + math.log1p(math.exp(0.5))) / 2,
            [-0.5 / (1 + math.exp(2)), -0.5 / (1 + math.exp(0.5))],
            [0.5 / (1 + math.exp(2)), 0.5 / (1 + math.exp(-0.5))],
        ),
        (
            "relativistic",
            (math.log1p(math.exp(-4)) + math.log(2)) / 2,
            [-0.5 / (1 + math.exp(4)), -0.25],
            [0.5 / (1 + math.exp(4)), 0.25],
        ),
    ],
)
def test_discriminator_losses_are_their_formulas(kind: str, value: float, by_real: list, by_fake: list):
    real, fake = REAL_LOGITS.clone().requires_grad_(), FAKE_LOGITS.clone().requires_grad_()
    loss = LOSSES[kind](real, fake)
    assert loss.item() == pytest.approx(value)
    for slope, wanted in zip(torch.autograd.grad(loss, [real, fake]), (by_real, by_fake), strict=True):
        assert slope.flatten().tolist() == pytest.approx(wanted)


@processes
@pytest.mark.parametrize("kind", ["hinge", "relativistic"])
def test_every_kind_raises_the_generators_logit(kind: str, process: Process):
    check_generator_kind(kind, process)


def test_paired_samples_share_their_noise_in_the_generators_turn_too():
    check_generator_kind("relativistic", Flow(), paired=True)


def test_a_relativistic_generator_needs_real_samples():
    objective = DMD2(gan=GAN(kind="relativistic"))
    assert objective.needs.images
    with pytest.raises(ValueError, match="set images=True"):
        objective.generator(
            gaussian_roles(Flow(), discriminator=Judge().float()), Batch(REAL.uncond(8), (2,), **streams())
        )


@pytest.mark.parametrize("gan", [GAN(kind="hinge"), GAN(kind="relativistic"), GAN(weight=0.0)])
def test_only_a_logistic_discriminator_gives_a_ratio(gan: GAN):
    with pytest.raises(ValueError, match=r"set gan\.kind=logistic and a weight above 0"):
        check_gives_ratio(gan)
    check_gives_ratio(GAN())


# Regularisers


def test_the_gradient_penalty_is_half_gamma_times_the_squared_slope():
    check_gradient_penalty()


def test_the_approximate_penalty_is_a_gradient_penalty_of_twice_its_squared_spread():
    approximate, slope, _ = penalised(Judge(), GAN(approximate_r1=50.0, spread=0.1), count=16_384)
    exact, exact_slope, _ = penalised(Judge(), GAN(r1=2 * 0.1**2 * 50.0), count=16_384)
    assert approximate.item() == pytest.approx(exact.item(), rel=0.03)
    assert (slope / exact_slope).tolist() == pytest.approx([1, 1], rel=0.06)


def test_pairs_share_times_and_noises():
    check_pairs_share_times_and_noises()


def test_pairs_may_share_their_times_alone():
    """SANA-Sprint's discriminator: x_real - x_fake of equal samples is what their noises differ by."""
    same = torch.randn(4000, 2, dtype=torch.float64)
    judge, batch = Judge(), Batch(REAL.uncond(4000), (2,), **streams(), real=same)
    batch.landing = clean(batch, same)
    DMD2(gan=GAN(paired="times")).fake_score(gaussian_roles(Flow(), discriminator=judge), batch)
    (x_real, x_fake), (t, u) = judge.x_t.chunk(2), judge.t.chunk(2)
    assert torch.equal(t, u)
    assert ((x_real - x_fake) / t[:, None]).std().item() == pytest.approx(2**0.5, rel=0.05)
