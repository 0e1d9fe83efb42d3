"""Pieces go with every objective that compares scores: a GAN term, weights, rollouts."""

from dataclasses import fields, replace
from functools import cache

import pytest
import torch
from closed_forms import PLANE, close, only, streams
from torch import Tensor

from fastgen.models.denoiser import NetworkDenoiser
from fastgen.models.roles import Roles
from fastgen.objectives import OBJECTIVES, Batch, Needs, Objective, Pair, Terms
from fastgen.objectives.parts.gan import GAN, NO_GAN
from fastgen.objectives.parts.matching import Matching
from fastgen.process import Flow, even_grid
from fastgen.proofs.analytic import ExactDenoiser
from fastgen.proofs.toy import imitate, toy_batch, toy_denoiser, toy_roles_of

EXACT = ExactDenoiser(Flow(), PLANE)
GAN_TERM = GAN(0.2, learned=0.1, paired=True)
MATCHING = {name: kind() for name, kind in OBJECTIVES.items() if isinstance(kind(), Matching)}
BOUND = ("asd", "f_distill", "smd", "uni_instruct")
FREE = {name: objective for name, objective in MATCHING.items() if name not in BOUND}
"""Those that are themselves without a discriminator, and read no ratio from it."""
pytestmark = pytest.mark.usefixtures("unchecked")


@cache
def imitation() -> NetworkDenoiser:
    """What the roles of every objective start from."""
    torch.manual_seed(0)
    learned = toy_denoiser(Flow(), PLANE)
    imitate(learned, EXACT, updates=50, batch=512, seed=0)
    return learned


@cache
def roles_for(name: str, steps: int) -> Roles:
    roles = toy_roles_of(imitation(), EXACT, [even_grid(steps)], objective=MATCHING[name])
    for parameter in roles.parameters("discriminator"):
        parameter.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return roles


def batch_of(images: int = 0) -> Batch:
    batch = toy_batch(PLANE, 64, *streams().values())
    return replace(batch, pairs=Pair(torch.randn(64, 2), batch.x0), images=images)


def terms_of(objective: Objective, turn: str, roles: Roles) -> Terms:
    torch.manual_seed(0)
    terms: Terms = getattr(objective, turn)(roles, batch_of())
    return terms


def test_the_whole_family_is_here():
    assert len(MATCHING) == 24
    assert list(MATCHING) == WEIGHED


@pytest.mark.parametrize("name", FREE)
def test_a_gan_term_stands_beside_any_objective(name: str):
    """What was there stays as it was; the new term is proportional to its weight, in either turn."""
    roles = roles_for(name, steps=2)
    terms = (NO_GAN, GAN(0.2, learned=0.1), GAN(0.4, learned=0.2))
    without, single, double = (replace(FREE[name], gan=gan) for gan in terms)
    assert without.cycle[1] == ("fake_score",)
    assert single.cycle[1] == ("fake_score", "discriminator")
    assert single.needs == without.needs | Needs(images=True)
    for turn in ("generator", "fake_score"):
        plain, one, two = (terms_of(objective, turn, roles) for objective in (without, single, double))
        assert "gan" not in plain
        close([one[term] for term in plain], list(plain.values()))
        assert one["gan"] > 0
        close(two["gan"], 2 * one["gan"])


@pytest.mark.parametrize("name", FREE)
def test_an_adversary_moves_the_generator_towards_what_it_takes_for_real(name: str):
    roles, objective = roles_for(name, steps=2), replace(FREE[name], gan=GAN_TERM)
    with roles.training(("generator",)):
        slopes = torch.autograd.grad(terms_of(objective, "generator", roles)["gan"], roles.parameters("generator"))
    assert any(slope.abs().sum() > 0 for slope in slopes)
    before = terms_of(objective, "generator", roles)["gan"]
    for sign in (-1, 1):  # there, and back again
        with torch.no_grad():
            for parameter, slope in zip(roles.parameters("generator"), slopes, strict=True):
                parameter += sign * 1e-3 * slope / torch.stack([s.norm() for s in slopes]).norm()
        after = terms_of(objective, "generator", roles)["gan"]
        assert (after < before) == (sign < 0)
        before = after


WEIGHED = [name for name, objective in MATCHING.items() if "weight" in {entry.name for entry in fields(objective)}]
T = 0.4
FACTORS = {"vsd": 0.6 * 0.4 / (0.6**2 + 0.4**2), "kl": 0.6**2 / 0.4**2, "alpha": 0.6}
"""On the flow at T, of clean samples."""


@pytest.mark.parametrize("name", WEIGHED)
def test_any_weight_goes_with_any_objective(name: str):
    """At one time the gradients under different weights are in proportion to the weights there."""
    roles = roles_for(name, steps=1)
    laws = {"times": only(T)} | ({"phases": 1} if name == "phased_dmd" else {})
    laws |= {"augmentation": 1.0} if name == "decoupled_dmd" else {}
    laws |= {"gan": replace(MATCHING[name].gan, even=False)}  # which equal weights refuse

    def gradient(weight: str) -> list[Tensor]:
        objective = replace(MATCHING[name], **laws, weight=weight)
        with roles.training(("generator",)):
            first = next(iter(terms_of(objective, "generator", roles).values()))
            return list(torch.autograd.grad(first, roles.parameters("generator")))

    plain = gradient("none")
    for weight, factor in FACTORS.items():
        close(gradient(weight), [factor * slope for slope in plain])
    assert not torch.allclose(gradient("l1")[0], plain[0])
