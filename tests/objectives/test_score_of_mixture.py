"""SMD: the direction of a skew divergence, and a discriminator whose best logit is the ratio."""

import pytest
import torch
from closed_forms import PROCESSES, processes
from mixtures import check_all_of_the_data_is_dmd2, check_skew_divergence, check_the_exact_ratio_is_the_least
from mutants import Mutant

from fastgen.objectives.distribution import smd
from fastgen.objectives.distribution.smd import ScoreOfMixture
from fastgen.objectives.parts.gan import GAN
from fastgen.process import Process


@processes
def test_the_direction_is_of_the_skew_divergence(process: Process):
    check_skew_divergence(process)


def test_all_of_the_data_is_dmd2():
    check_all_of_the_data_is_dmd2()


@processes
def test_the_discriminator_is_best_at_the_exact_ratio(process: Process):
    check_the_exact_ratio_is_the_least(process)


def skewed() -> None:
    check_skew_divergence(PROCESSES["flow"])


def judged() -> None:
    check_the_exact_ratio_is_the_least(PROCESSES["flow"])


GATE, APART, SURROGATE = smd._gate_logit, ScoreOfMixture._apart, smd.surrogate
MUTANTS = {
    "uphill": ((smd, "surrogate", lambda x, grad: SURROGATE(x, -grad)), skewed),
    "a gate without its share": ((torch, "logit", lambda a: 0 * a), skewed),
    "the ratio upside down": (
        (smd, "_gate_logit", lambda *told: GATE(*told) - 2 * GATE(*told[:-1], 0.5 + 0 * told[-1])),
        skewed,
    ),
    "a share upside down": ((torch, "logit", lambda a: -torch.special.logit(a)), judged),
    "real samples for generated ones": (
        (ScoreOfMixture, "_apart", lambda *told: torch.cat(APART(*told).chunk(2)[::-1])),
        judged,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_mixture_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    patch, check = MUTANTS[name]
    Mutant([patch], check).must_be_noticed(monkeypatch)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shares": (0.0, 1.0)}, "need 0 < low <= high <= 1"),
        ({"gan": GAN()}, "joint and paired"),
        ({"gan": GAN(joint=True, paired=True, r1=1.0)}, "here is none"),
        ({"gan": GAN(joint=True, paired=True, feature_r1=1.0)}, "here is none"),
        ({"gan": GAN(0.0)}, "the density ratio comes from"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        ScoreOfMixture(**settings)
