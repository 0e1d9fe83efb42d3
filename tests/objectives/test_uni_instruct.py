"""Uni-Instruct against the Fisher form of f-divergences."""

import pytest
import torch
from closed_forms import close, only, processes, quasi_random, scripted, slopes
from divergences import (
    FISHER,
    LEVEL,
    NAMES,
    T,
    check_fisher_functional,
    check_fisher_reference,
    detached,
    fisher,
    judged,
)
from quadrature import LINE, SQUARE, quadrature

from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.parts.divergences import DivergenceName
from fastgen.process import Process, Trig


@pytest.mark.parametrize("name", FISHER)
def test_uni_instruct_gives_the_reference_numbers(name: DivergenceName):
    check_fisher_reference(name)


@processes
@NAMES
def test_uni_instruct_is_the_gradient_of_the_fisher_form(process: Process, name: DivergenceName):
    check_fisher_functional(process, name, LINE, nodes=60)


@processes
def test_uni_instruct_sums_the_ratios_slope_over_dimensions(process: Process):
    check_fisher_functional(process, "jensen_shannon", SQUARE, nodes=14)


@processes
def test_uni_instruct_of_reverse_kl_is_twice_sid_at_one_half(process: Process):
    z, eps = quasi_random(2, 256)
    measured = slopes(judged(process), fisher("reverse_kl"), scripted(z, eps), "fisher")
    half = slopes(judged(process), SiD(alpha=0.5, weight="none", times=only(T)), scripted(z, eps), "sid")
    close(measured, [2 * slope for slope in half], tolerance=1e-10)


BIASED: dict[DivergenceName, tuple[float, float]] = {
    "forward_kl": (0.59680, 0.36011),
    "jensen_shannon": (0.35572, 0.21089),
    "jeffreys": (1.60682, 1.11767),
}


@pytest.mark.parametrize("name", BIASED)
def test_a_detached_ratio_would_be_biased(name: DivergenceName, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(UniInstruct, "_log_ratio", detached)
    roles, batch = quadrature(Trig(), LINE, nodes=60)
    measured = torch.cat([slope.flatten() for slope in slopes(roles, fisher(name, LEVEL), batch, "fisher")])
    close(0.8**2 / 0.6**4 * measured, torch.tensor(BIASED[name]).double(), tolerance=2e-5)
