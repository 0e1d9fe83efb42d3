"""Weights of matching directions, and the running means that ratios are divided by."""

import pytest
import torch
from closed_forms import processes
from score_weights import check_kl_score, check_ratio_means, check_weight, compared

from fastgen.models.state import RatioMeans
from fastgen.objectives.parts.matching import FLOOR
from fastgen.objectives.parts.weights import WEIGHTS, weighed
from fastgen.process import Flow, Process


@processes
@pytest.mark.parametrize("name", WEIGHTS)
def test_each_weight_is_its_formula(name: str, process: Process):
    check_weight(name, process)


@processes
def test_the_kl_weight_gives_the_difference_of_scores(process: Process):
    check_kl_score(process)


def test_a_sample_that_equals_its_denoising_has_a_finite_weight():
    scores, _ = compared(Flow())
    assert (WEIGHTS["l1"](scores, scores.real.x0) == 1 / FLOOR).all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_directions_hold_no_graph_to_the_samples(name: str):
    scores, x = compared(Flow())
    assert not weighed(name, scores, x.requires_grad_()).requires_grad


# Running means


def test_ratios_are_divided_by_the_mean_of_their_tenth():
    check_ratio_means()


def test_running_means_are_saved_and_hold_no_graph():
    means = RatioMeans()
    ratio = torch.ones(3, requires_grad=True)
    means.normalise(2 * ratio, torch.full((3,), 0.5, dtype=torch.float64), rate=0.5)
    assert not means.means.requires_grad
    assert not list(means.parameters())
    fresh = RatioMeans()
    fresh.load_state_dict(means.state_dict())
    assert fresh.means[5] == 1.5
