"""Reflow and PeRFlow against exact lines of Gaussians, and made wrong on purpose."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from closed_forms import PROCESSES, close, processes
from lines import (
    EXACT,
    check_every_grid_is_exact,
    check_lines_are_the_fixed_point,
    check_reflow_by_hand,
    check_window_by_hand,
    check_windows_are_learned_alike,
    seen_times,
)
from mutants import Mutant

from fastgen.models.calls import look
from fastgen.objectives.parts import lines
from fastgen.objectives.regression import reflow
from fastgen.objectives.regression.reflow import Reflow
from fastgen.objectives.trajectory import perflow
from fastgen.objectives.trajectory.perflow import PiecewiseRectifiedFlow
from fastgen.process import ROWS, Process, Uniform, laid
from fastgen.process.prediction import Prediction

VP = PROCESSES["vp"]


@processes
@pytest.mark.parametrize("name", EXACT)
def test_lines_of_exact_flow_maps_are_the_fixed_point(process: Process, name: str):
    check_lines_are_the_fixed_point(process, name)


@processes
def test_a_reflowed_network_is_exact_on_every_grid(process: Process):
    check_every_grid_is_exact(process)


def test_points_of_reflow_are_means_of_the_ends():
    check_reflow_by_hand()


def test_a_window_ends_where_the_solver_leads():
    check_window_by_hand()


def test_windows_are_the_steps_of_the_shortest_grid():
    check_windows_are_learned_alike()


def test_reflow_looks_up_to_the_students_first_stop():
    seen = seen_times("reflow")()
    assert 0 < seen.min() < 0.01
    assert 0.99 < seen.max() <= 1


def test_the_noise_of_a_window_is_that_of_the_published_code():
    """`ddim_eps` of magic-research/piecewise-rectified-flow: (z_e - l z_s) / h, whose DDIM step ends in z_e."""
    z_s, z_e = torch.randn(2, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s, e = (torch.full((5,), time, dtype=torch.float64) for time in (0.75, 0.5))
    kept_s, kept_e = (float(VP.alphas_cumprod[step - 1]) for step in (750, 500))
    scale = (kept_e / kept_s) ** 0.5
    noise = (z_e - scale * z_s) / ((1 - kept_e) ** 0.5 - (kept_e / kept_s * (1 - kept_s)) ** 0.5)
    close(LANDING(VP, z_s, s, z_e, e).eps, noise, tolerance=1e-5)


def test_what_they_need_and_refuse():
    assert str(Reflow().needs) == "pairs, sampler=ode"
    assert str(PiecewiseRectifiedFlow().needs) == "images, real_score, sampler=ode"
    with pytest.raises(ValueError, match="substeps is 1: need at least 2"):
        PiecewiseRectifiedFlow(substeps=1)


def of_longest(roles: object) -> object:
    grid = max(roles.plan.grids, key=len).double()
    return perflow.torch.cat([grid, grid.new_zeros(1)])


def with_signal(process: Process, x_t: object, t: object, x0: object, s: object) -> Prediction:
    """The line from the noised sample, not from the noise alone."""
    return LANDING(process, process.renoise(x0, t, x_t / process.sigma(t)[:, None]), t, x0, s)


LANDING = reflow.landing_on
LINES, FIXED = partial(check_lines_are_the_fixed_point, VP, "reflow"), check_lines_are_the_fixed_point
MUTANTS = {
    "detached generator": Mutant.of(lines, "through", look, LINES),
    "another row": Mutant.of(lines, "ROWS", {name: ROWS["x0"] for name in ROWS}, LINES),
    "asked at the beginning's time": Mutant.of(
        lines, "through", lambda model, x, t, *more: THROUGH(model, x, t.clamp(min=0.9), *more), LINES
    ),
    "reflow: begins with signal": Mutant.of(reflow, "landing_on", with_signal, LINES),
    "reflow: another pair's end": Mutant.of(
        reflow, "landing_on", lambda p, x, t, x0, s: LANDING(p, x, t, x0.flip(0), s), LINES
    ),
    "reflow: times beyond the first stop": Mutant.of(lines, "laid", lambda law, t, low, high: t, check_reflow_by_hand),
    "perflow: down to clean data": Mutant.of(
        lines, "laid", lambda law, t, low, high: laid(law, t, 0 * low, high), partial(FIXED, VP, "perflow")
    ),
    "perflow: windows of the longest grid": Mutant.of(
        perflow, "windows_of", of_longest, check_windows_are_learned_alike
    ),
    "perflow: one step of the solver": Mutant.of(
        perflow, "SOLVERS", {"ddim": lambda field, x, t, s, *, substeps: field(x, t).at(s)}, check_window_by_hand
    ),
    "perflow: line to another end": Mutant.of(
        perflow, "landing_on", lambda p, x, t, x_s, s: LANDING(p, x, t, x_s.flip(0), s), partial(FIXED, VP, "perflow")
    ),
}
THROUGH = lines.through


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)


@pytest.mark.parametrize("name", EXACT)
def test_another_law_of_times_moves_them(name: str, monkeypatch: pytest.MonkeyPatch):
    before = seen_times(name)().mean()
    monkeypatch.setitem(EXACT, name, replace(EXACT[name], times=Uniform(0.5, 1.0)))
    assert seen_times(name)().mean() > before + 0.1
