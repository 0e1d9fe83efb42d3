"""Score implicit matching against its theorem, and at the ends of its constant."""

import pytest
import torch
from closed_forms import close, gaussian_roles, processes, quasi_random, scripted, slopes
from identities import DISTANCES, check_sim_theorem, frozen, implicit, levels, plain
from quadrature import LINE, SQUARE, leaves

from fastgen.objectives.distribution.sim import SIM, ScoreDistance
from fastgen.process import Process


@processes
@pytest.mark.parametrize("distance", DISTANCES)
def test_sim_is_the_gradient_of_its_distance(process: Process, distance: ScoreDistance):
    check_sim_theorem(process, LINE, distance, nodes=40)
    check_sim_theorem(process, SQUARE, distance, nodes=10)


@processes
def test_the_squared_distance_is_sid_at_one_without_weight(process: Process):
    noises = quasi_random(2, 256)
    square = slopes(gaussian_roles(process), implicit("square"), scripted(*noises), "sim")
    close(square, slopes(gaussian_roles(process), plain(1.0), scripted(*noises), "sid"), tolerance=1e-12)


@processes
def test_a_large_constant_makes_the_huber_distance_a_square(process: Process):
    noises = quasi_random(2, 256)
    square = slopes(gaussian_roles(process), implicit("square"), scripted(*noises), "sim")
    huber = slopes(gaussian_roles(process), implicit("pseudo_huber", 1e4), scripted(*noises), "sim")
    close([1e4 * slope for slope in huber], list(square))


@processes
def test_a_small_constant_leaves_the_unit_residual(process: Process):
    z, eps = quasi_random(2, 256)
    measured = slopes(gaussian_roles(process), implicit("pseudo_huber", 1e-9), scripted(z, eps), "sim")
    mean, factor = leaves(SQUARE)
    x0 = mean + z @ factor.T
    scale, sigma = levels(process)
    real, fake = frozen(process, scale * x0 + sigma * eps)
    unit = (real - fake) / ((real - fake).square().sum(dim=1, keepdim=True) / 2).sqrt()
    close(measured, torch.autograd.grad((unit * (fake - x0)).mean(), [mean, factor]))


def test_a_distance_without_slope_at_zero_is_refused():
    with pytest.raises(ValueError, match="need huber > 0"):
        SIM(huber=0.0)
