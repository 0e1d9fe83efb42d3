"""Cycles, regression and denoising, against finite differences and closed-form floors."""

import pytest
from closed_forms import processes
from denoising import LEARNERS, REGRESSIONS, check_denoising_floor, check_label_dropout, check_regression

from fastgen.objectives import Needs, Objective
from fastgen.objectives.distribution.dmd import DMD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.vsd import VSD
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.objectives.regression.kd import KnowledgeDistillation
from fastgen.objectives.regression.pretrain import Pretrain
from fastgen.process import Process

# Cycles and needs

GENERATOR, FAKE, BOTH = ("generator",), ("fake_score",), ("fake_score", "discriminator")


@pytest.mark.parametrize(
    ("objective", "cycle", "needs"),
    [
        (VSD(), (GENERATOR, FAKE), Needs(real_score=True, null=True)),
        (VSD(guidance=Fixed(1.0), ratio=3), (GENERATOR, FAKE, FAKE, FAKE), Needs(real_score=True)),
        (DMD(), (GENERATOR, FAKE), Needs(real_score=True, pairs=True, one_step=True)),
        (DMD(guidance=Fixed(2.0)), (GENERATOR, FAKE), Needs(real_score=True, pairs=True, null=True, one_step=True)),
        (DMD2(), (GENERATOR, *5 * (BOTH,)), Needs(real_score=True, images=True)),
        (DMD2(gan=GAN(0.0), ratio=2), (GENERATOR, FAKE, FAKE), Needs(real_score=True)),
        (DMD2(gan=GAN(0.0), rollout="noised_data", ratio=1), (GENERATOR, FAKE), Needs(real_score=True, images=True)),
        (KnowledgeDistillation(), (GENERATOR,), Needs(pairs=True, one_step=True)),
        (Pretrain(), (GENERATOR,), Needs(images=True, null=True)),
        (Pretrain(label_dropout=0.0), (GENERATOR,), Needs(images=True)),
    ],
)
def test_cycles_and_needs(objective: Objective, cycle: tuple, needs: Needs):
    assert objective.cycle == cycle
    assert objective.needs == needs


@pytest.mark.parametrize("kind", [VSD, DMD, DMD2])
def test_a_fake_score_that_never_learns_is_refused(kind: type[Objective]):
    with pytest.raises(ValueError, match="at least one update per generator update"):
        kind(ratio=0)


# Regression


@processes
@pytest.mark.parametrize("name", REGRESSIONS)
def test_regression_has_the_pseudo_huber_gradient(process: Process, name: str):
    check_regression(process, name)


# Denoising


@processes
@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("space", ["x0", "eps"])
def test_the_exact_denoiser_reaches_the_floor(process: Process, name: str, space: str):
    check_denoising_floor(process, name, space)


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_labels_are_dropped_as_often_as_asked(share: float):
    check_label_dropout(share)
