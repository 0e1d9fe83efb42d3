"""EMD: one step is Diff-Instruct, two are what linear algebra says, many follow the forward KL divergence."""

from dataclasses import replace

import pytest
import torch
from closed_forms import PROCESSES, close, gaussian_roles, only, processes, quasi_random, scripted, slopes
from expectation import A, check_many_steps_follow_the_forward_kl, check_two_steps_by_hand
from mutants import Mutant

from fastgen.objectives.distribution import emd
from fastgen.objectives.distribution.diff_instruct import DiffInstruct
from fastgen.objectives.distribution.emd import EMDistillation
from fastgen.objectives.parts.ops import surrogate
from fastgen.process import Process


@processes
def test_one_step_is_diff_instruct_times_its_size(process: Process):
    z, eps = quasi_random(2, 256)
    once = EMDistillation(corrections=1, noise_step=0.3, latent_step=0.0, times=only(0.5))
    found = slopes(gaussian_roles(process), once, scripted(z, eps, *2 * [z]), "dm")
    direct = slopes(gaussian_roles(process), DiffInstruct(times=only(0.5)), scripted(z, eps), "dm")
    close(found, tuple(0.3 * slope for slope in direct), tolerance=1e-12)


@processes
def test_two_steps_are_those_of_linear_algebra(process: Process):
    check_two_steps_by_hand(process)


def test_many_small_steps_follow_the_forward_kl():
    check_many_steps_follow_the_forward_kl()


def test_settings_that_cannot_work_are_refused():
    for settings, words in (({"corrections": 0}, "nothing is learned"), ({"noise_step": 1.0}, "forget")):
        with pytest.raises(ValueError, match=words):
            EMDistillation(**settings)


def by_hand() -> None:
    check_two_steps_by_hand(PROCESSES["vp"])


SCORED, CALLED, CHAIN, GRAD = emd.scored, emd._made, emd.Chain, torch.autograd.grad


class Forgetful:
    """Calls the generator with the noise that it was first called with."""

    first: object = None

    def __call__(self, roles, batch, noise, t):
        if batch.landing is None:
            self.first = noise.detach()
        return CALLED(roles, batch, noise if noise.requires_grad else self.first, t)


def turned(*given: object) -> object:
    scores = SCORED(*given)
    return replace(scores, real=scores.fake, fake=scores.real)


def growing(z: torch.Tensor, eps: torch.Tensor, pull: torch.Tensor) -> object:
    """What was remembered before the last step is remembered whole."""
    return CHAIN(z, eps, pull / (1 - A))


MUTANTS = {
    "uphill": (emd, "surrogate", lambda x, grad: surrogate(x, -grad)),
    "scores the wrong way round": (emd, "scored", turned),
    "noise of another size": (emd.math, "sqrt", lambda value: value),
    "the chain stands still": (EMDistillation, "_corrected", lambda self, batch, chain, *_: chain),
    "less is forgotten": (emd, "Chain", growing),
    "z moved without the generator's slope": (
        torch.autograd,
        "grad",
        lambda x, z, given=None: GRAD(x, z) if given is None else (given,),
    ),
    "regressed where it began": (emd, "_made", Forgetful()),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_chain_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    Mutant([MUTANTS[name]], by_hand).must_be_noticed(monkeypatch)
