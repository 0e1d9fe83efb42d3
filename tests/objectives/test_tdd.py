"""Which times target-driven distillation maps to, and what its students see without condition."""

from dataclasses import replace

import pytest
import torch
from closed_forms import PLANE, PROCESSES, close, streams
from flow_maps import clean_at, exactly, gaussian_batch, knowing_roles

from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import SOLVERS, Guidance
from fastgen.objectives.trajectory.tdd import TargetDriven, longest_step
from fastgen.process import even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

NO_GAN = GAN(0.0)


def test_ending_times_of_a_driven_target():
    """The student's own times, from the highest that r reaches to the window below it."""
    objective = TargetDriven(jitter=0.0)
    roles = knowing_roles(objective, PROCESSES["flow"], clean_at(0.0), grids=[even_grid(n) for n in (4, 5, 8)])
    batch = gaussian_batch(size=4000)
    t = torch.rand(4000, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 0.98 + 0.02
    r = t - 0.01
    s = objective.targets(roles, batch, r)
    stops = {0.0} | {round(k / n, 9) for n in (4, 5, 8) for k in range(n + 1)}
    assert {round(x, 9) for x in s.tolist()} <= stops
    assert (s <= r).all()
    near = s[(r - 0.9).abs() < 0.01].unique()
    close(near, torch.tensor([0.625, 0.75, 0.8, 0.875], dtype=torch.float64))
    jittered = replace(objective, jitter=0.3).targets(roles, batch, r)
    highest = torch.tensor([max(stop for stop in stops if stop <= end) for end in r.tolist()], dtype=torch.float64)
    assert ((jittered <= r) & (jittered >= 0.7 * (highest - 0.26).clamp(min=0))).all()


def test_a_window_without_target_reaches_for_the_next():
    objective = TargetDriven(jitter=0.0, window=0.1)
    roles = knowing_roles(objective, PROCESSES["vp"], clean_at(0.0), grids=[even_grid(2)])
    r = torch.tensor([0.89, 0.39], dtype=torch.float64)
    close(objective.targets(roles, gaussian_batch(size=2), r), torch.tensor([0.5, 0.001]).double())


def test_the_adversary_looks_up_to_the_longest_step_above():
    roles = knowing_roles(TargetDriven(), PROCESSES["flow"], clean_at(0.0), grids=[even_grid(n) for n in (8, 4, 5)])
    assert longest_step(roles) == 0.25


def test_dropped_conditions_reach_teacher_and_student_alike():
    """Without conditions guidance changes nothing; with them it does."""

    def loss(dropout: float, w: float) -> float:
        objective = TargetDriven(dropout=dropout, teacher_guidance=Guidance(w, w), gan=NO_GAN, distance="l2", grid=4)
        roles = toy_roles(PROCESSES["flow"], PLANE, [even_grid(4)], objective=objective, updates=0)
        return objective.generator(roles, toy_batch(PLANE, 64, *streams().values()))["consistency"].item()

    assert loss(1.0, 4.5) == pytest.approx(loss(1.0, 1.0), rel=1e-4)
    assert loss(0.0, 4.5) != pytest.approx(loss(0.0, 1.0), rel=0.1)


def test_an_average_gives_the_target_and_follows_first(monkeypatch: pytest.MonkeyPatch):
    """A velocity is wrong by c, its average at decay 3/4 by c / 4: from 1 by way of 1/2 that makes 7c / 8."""
    process, wrong = PROCESSES["flow"], torch.tensor([0.3, -0.4]).double()
    monkeypatch.setitem(SOLVERS, "ddim", exactly(process))
    objective = TargetDriven(
        teacher_guidance=Guidance(), grid=2, gan=NO_GAN, window=0.0, jitter=0.0, dropout=0.0, ema=0.75
    )
    roles = knowing_roles(objective, process, clean_at(0.0), grids=[even_grid(1)])
    roles.generator.bias.data.copy_(wrong)
    assert objective.needs.target
    objective.generator(roles, gaussian_batch())
    close(roles.target.bias, wrong / 4)
    gap = objective.compared(roles, gaussian_batch()).ends.gap / wrong
    close(gap.round(decimals=9).unique(), gap.new_tensor([-7 / 8, -1 / 2]))
