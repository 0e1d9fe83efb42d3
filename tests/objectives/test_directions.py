"""Directions of distribution matching, against linear algebra and autograd of analytic divergences."""

import math

import pytest
import torch
from closed_forms import PLANE, close, cubature, gaussian_roles, only, processes, quasi_random, scripted, slopes
from directions import (
    check_augmentation_times,
    check_decoupled_sum,
    check_diff_instruct,
    check_swiftbrush_and_vsd,
    classed,
)

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.objectives.distribution.decoupled_dmd import DecoupledDMD
from fastgen.objectives.distribution.diff_instruct import DiffInstruct
from fastgen.process import Flow, Process, Trig, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, Mixture

HALF = torch.tensor([1.0, 0.5], dtype=torch.float64)


# Diff-Instruct


@processes
def test_diff_instruct_is_the_unweighted_difference(process: Process):
    check_diff_instruct(process)


def test_diff_instruct_has_its_tabled_value_at_alpha_four_fifths():
    """One dimension: N(0.3, 0.8) and 0.9 + 1.1 z at alpha 0.8, sigma 0.6."""
    process, one = Trig(), torch.ones(1, 1, dtype=torch.float64)
    generator = AffineGenerator(process, 0.9 * one[0], 1.1 * one)
    members = {
        "generator": generator,
        "fake_score": ExactDenoiser(process, generator.law()),
        "real_score": ExactDenoiser(process, Mixture(0.3 * one, 0.8 * one[None])),
    }
    objective = DiffInstruct(times=only(math.acos(0.8) * 2 / math.pi))
    mean, factor = slopes(Roles(members, Plan([even_grid(1)])), objective, scripted(*cubature(1)), "dm")
    assert (mean.item(), factor.item()) == pytest.approx((0.247706422, 0.105045225), abs=1e-7)


# SwiftBrush


@processes
def test_swiftbrush_guides_both_scores_and_vsd_the_real_one(process: Process):
    check_swiftbrush_and_vsd(process)


# Decoupled DMD


@processes
def test_decoupled_dmd_splits_the_guided_direction(process: Process):
    check_decoupled_sum(process)


def test_the_augmentation_pulls_towards_the_condition_even_where_the_scores_agree():
    process = Flow()
    exact = ExactDenoiser(process, Mixture(PLANE.means[:1], PLANE.covariances[:1]))
    roles = gaussian_roles(process, real_score=ExactDenoiser(process, PLANE), fake_score=exact)
    for term in ("dm", "augmentation"):
        z, eps = quasi_random(2, 256)
        (mean, _) = slopes(roles, DecoupledDMD(times=only(0.5)), classed(0, z, eps, eps), term)
        if term == "dm":
            close(mean, torch.zeros(2, dtype=torch.float64))
        else:
            assert mean @ (PLANE.means[0] - PLANE.means[1:].mean(dim=0)) < 0, "descent leads away from the class"
            assert mean.norm() > 0.01


def test_a_scale_of_one_leaves_the_augmentation_out():
    terms = DecoupledDMD(augmentation=1.0).generator(gaussian_roles(Flow()), scripted(*quasi_random(2, 8)))
    assert set(terms) == {"dm"}
    assert not DecoupledDMD(augmentation=1.0).needs.null
    assert DecoupledDMD().needs.null


@pytest.mark.parametrize("below", [True, False])
def test_the_guidance_is_read_below_the_students_step(below: bool):
    check_augmentation_times(below=below)
