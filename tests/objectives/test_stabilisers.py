"""What steadies a matching of scores: each setting on exact Gaussians, and made wrong on purpose."""

import pytest
from closed_forms import processes
from mutants import Mutant
from stabilisers import (
    check_exact_steps_have_nothing_to_learn_within,
    check_real_samples_are_believed_in_by_their_weight,
    check_that_shrinks_the_direction_where_data_are_likely,
    check_the_fake_score_learns_of_what_is_matched,
    check_the_first_step_is_not_matched,
    check_the_first_step_is_the_teachers_mean_velocity,
    check_the_segments_teacher_is_guided,
    check_the_segments_term_by_hand,
)

from fastgen.models.calls import through
from fastgen.objectives import DMD2, Needs
from fastgen.objectives.distribution.dp_dmd import DPDMD
from fastgen.objectives.distribution.emd import EMDistillation
from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.parts import anchors, score_matching, stabilisers
from fastgen.objectives.parts.anchors import Diversity, Segments
from fastgen.objectives.parts.gan import NO_GAN
from fastgen.objectives.parts.rollout import land, landing_of
from fastgen.objectives.parts.solvers import Guidance, landing_on
from fastgen.objectives.parts.stabilisers import Stabilisers
from fastgen.process import ROWS, Flow, Process


def test_real_samples_are_believed_in_by_their_weight():
    check_real_samples_are_believed_in_by_their_weight()


def test_that_shrinks_the_direction_where_data_are_likely():
    check_that_shrinks_the_direction_where_data_are_likely()


@processes
def test_exact_steps_have_nothing_to_learn_within(process: Process):
    check_exact_steps_have_nothing_to_learn_within(process)


def test_the_segments_term_by_hand():
    check_the_segments_term_by_hand()


def test_the_segments_teacher_is_guided():
    check_the_segments_teacher_is_guided()


def test_the_first_step_is_the_teachers_mean_velocity():
    check_the_first_step_is_the_teachers_mean_velocity()


def test_the_first_step_is_not_matched():
    check_the_first_step_is_not_matched()


def test_the_fake_score_learns_of_what_is_matched():
    check_the_fake_score_learns_of_what_is_matched()


STAY = {"ddim": lambda field, x, t, s, *, substeps=1: x}
DENOISING, SAMPLED, HUBER = stabilisers.fake_denoising, anchors.sampled, anchors.huber

MUTANTS = {
    "real samples left out": Mutant.of(
        stabilisers,
        "fake_denoising",
        lambda settings, roles, batch, real, noised: 0 * DENOISING(settings, roles, batch, real, noised),
        check_real_samples_are_believed_in_by_their_weight,
    ),
    "real samples at full weight": Mutant.of(
        stabilisers,
        "fake_denoising",
        lambda settings, roles, batch, real, noised: 2 * DENOISING(settings, roles, batch, real, noised),
        check_real_samples_are_believed_in_by_their_weight,
    ),
    "the segment's target learns": Mutant.of(anchors, "look", through, check_the_segments_term_by_hand),
    "the segment's teacher stands still": Mutant.of(anchors, "SOLVERS", STAY, check_the_segments_term_by_hand),
    "the segment squared": Mutant.of(anchors, "huber", lambda gap, c: gap.square(), check_the_segments_term_by_hand),
    "the segment unweighed": Mutant.of(
        anchors, "huber", lambda gap, c: 2 * HUBER(gap, c), check_the_segments_term_by_hand
    ),
    "the segment at another stop": Mutant.of(
        anchors,
        "sampled",
        lambda roles, batch, grid, *, depth: SAMPLED(roles, batch, grid, depth=0),
        lambda: check_exact_steps_have_nothing_to_learn_within(Flow()),
    ),
    "the segment's teacher unguided": Mutant.of(
        Guidance,
        "field",
        lambda self, roles, batch: anchors.Field(roles.real_score, batch.cond),
        check_the_segments_teacher_is_guided,
    ),
    "diversity of noises": Mutant.of(
        anchors, "VELOCITY", ROWS["eps"], check_the_first_step_is_the_teachers_mean_velocity
    ),
    "diversity the other way": Mutant.of(
        anchors,
        "landing_on",
        lambda process, x_t, t, x_s, s: landing_on(process, x_t, t, 2 * x_t - x_s, s),
        check_the_first_step_is_the_teachers_mean_velocity,
    ),
    "the first step matched": Mutant.of(
        score_matching,
        "land",
        lambda way, roles, batch, first: land(way, roles, batch),
        check_the_first_step_is_not_matched,
    ),
    "the fake score learns of the first step": Mutant.of(
        score_matching,
        "landing_of",
        lambda way, roles, batch, first: landing_of(way, roles, batch),
        check_the_fake_score_learns_of_what_is_matched,
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)


REFUSED = {
    "takes over": lambda: Stabilisers(follow=1.0),
    "stabilisers.real is -1": lambda: Stabilisers(real=-1.0),
    "nothing trains the first step": lambda: Stabilisers(skip=True, segments=Segments()),
    "segments.weight is -1": lambda: Segments(-1.0),
    "margin is 0.5": lambda: Segments(margin=0.5),
    "segments.teacher_guidance.told": lambda: Segments(teacher_guidance=Guidance(1.0, 2.0, told=True)),
    "anchor is 31 of 30": lambda: Diversity(anchor=31),
    "here is one": lambda: SiD(stabilisers=Stabilisers(skip=True, diversity=Diversity())),
    "set it to false": lambda: EMDistillation(stabilisers=Stabilisers(skip=True, diversity=Diversity())),
    "dp_dmd does by itself": lambda: DPDMD(stabilisers=Stabilisers(diversity=Diversity())),
}


@pytest.mark.parametrize("words", REFUSED)
def test_settings_that_cannot_work_are_refused(words: str):
    with pytest.raises(ValueError, match=words):
        REFUSED[words]()


def test_what_they_need():
    plain = Needs(real_score=True)
    guided = Segments(teacher_guidance=Guidance(3.0, 3.0))
    for setting, needs in (
        (Stabilisers(), plain),
        (Stabilisers(follow=0.03), plain | Needs(follows=True)),
        (Stabilisers(real=0.1), plain | Needs(images=True)),
        (Stabilisers(segments=guided), plain | Needs(null=True)),
        (Stabilisers(diversity=Diversity()), plain | Needs(sampler="ode")),
        (Stabilisers(skip=True, diversity=Diversity()), plain | Needs(sampler="ode", steps=2, anchored=True)),
    ):
        assert DMD2(gan=NO_GAN, stabilisers=setting).needs == needs
