"""Score identity distillation and score implicit matching against closed forms.

What matters most is written as `check_*` functions; `test_mutants_identity.py` runs them on objectives made wrong.
"""

import math
from dataclasses import replace

import pytest
import torch
from closed_forms import (
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    PLANE,
    close,
    cubature,
    gaussian_roles,
    processes,
    scripted,
    slopes,
    streams,
)
from identities import (
    T,
    check_gan_is_weighted_per_sample,
    check_gan_waits,
    check_half_is_the_fisher_gradient,
    check_sid_closed_form,
    check_weight_is_detached,
    check_zero_guidance,
    levels,
    plain,
)
from quadrature import LINE, SQUARE, marginals, quadrature
from rounding import assert_alike

from fastgen.models.calls import look
from fastgen.objectives.distribution import sid
from fastgen.objectives.distribution.sid import SiD, SiDLSG
from fastgen.objectives.distribution.sida import FewStepSiD, SiDA
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed, LongShort
from fastgen.process import Flow, Process, Trig, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

# SiD


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


@processes
def test_sids_weight_takes_no_gradient(process: Process):
    check_weight_is_detached(process)


# SiDA, and its neighbours in the family


@processes
def test_sidas_gan_term_has_each_samples_weight(process: Process):
    check_gan_is_weighted_per_sample(process)


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


def test_zero_guidance_compares_with_an_unconditional_fake_score():
    check_zero_guidance()
