"""Parallel decoding against closed forms, and made wrong on purpose."""

from functools import partial

import pytest
import torch
from closed_forms import PLANE, PROCESSES, REAL, processes
from decoding import (
    check_every_interval_of_a_block_is_learned,
    check_loss_by_hand,
    check_order,
    check_prefix_sums,
    check_teacher_of_every_step_is_the_fixed_point,
    taking_every_step,
)
from mutants import Mutant
from torch import Tensor

from fastgen.models.calls import look
from fastgen.models.head_bank import Intervals
from fastgen.models.walk import walk
from fastgen.objectives.parts.solvers import SOLVERS
from fastgen.objectives.trajectory import pdd
from fastgen.objectives.trajectory.pdd import ParallelDecoding
from fastgen.process import ROWS, Process, even_grid
from fastgen.proofs.analytic import ExactDenoiser
from fastgen.proofs.toy import toy_roles

VP, FLOW = PROCESSES["vp"], PROCESSES["flow"]


@processes
@pytest.mark.parametrize("target", ["euler", "midpoint"])
def test_the_loss_is_the_formula_on_exact_trajectories(process: Process, target: str):
    check_loss_by_hand(process, target)


@processes
def test_heads_that_say_what_a_teacher_of_every_step_says_are_the_fixed_point(process: Process):
    check_teacher_of_every_step_is_the_fixed_point(process)


def test_every_interval_of_a_block_is_learned():
    check_every_interval_of_a_block_is_learned(FLOW)


@pytest.mark.parametrize(("target", "order"), [("euler", 1), ("midpoint", 2)])
def test_targets_are_of_first_order_and_of_second(target: str, order: int):
    check_order(target, order)


def bank(process: Process) -> None:
    """A learned bank on the toy network, its heads drawn."""
    roles = toy_roles(process, PLANE, [even_grid(4)], objective=ParallelDecoding(heads=4), updates=0, sampler="ode")
    torch.nn.init.normal_(roles.generator.embeddings.offsets, std=0.3)
    x = torch.randn(5, 2)
    check_prefix_sums(process, roles.generator, x, PLANE.uncond(5), roles.generator.embeddings.intervals)


@processes
def test_a_fused_block_ends_where_its_heads_lead_one_after_the_other(process: Process):
    bank(process)


@processes
def test_one_block_of_a_trained_student_is_the_teachers_euler_sampler(process: Process):
    """What progressive distillation aims at with as many substeps, in one round."""
    grids = [even_grid(1)]
    edges = pdd.intervals_of(grids, process, 8).edges
    x, one = process.prior(torch.randn(6, 2, dtype=torch.float64), torch.ones(6)), torch.ones(6, dtype=torch.float64)
    real = ExactDenoiser(process, REAL)
    told = {"r": one, "s": 0 * one}
    ours = taking_every_step(edges)(process, x, one, told).at(0 * one)
    theirs = SOLVERS["ddim"](lambda x, t: real(x, t, REAL.uncond(6)), x, one, 0 * one, substeps=8)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def told_from_the_next(shift: int, edges: Tensor, batch: object) -> tuple[Tensor, Tensor]:
    i = torch.randint(len(edges) - 1, (batch.size,), generator=batch.rng)
    return edges[i], edges[(i + 1 + shift).clamp(max=len(edges) - 1)]


def by_process_time(cls: type[Intervals], process: Process, edges: Tensor) -> Intervals:
    return Intervals(edges, -edges.diff())


def alike(self: Intervals, r: Tensor, s: Tensor) -> Tensor:
    shares = SHARES(self, r, s) > 0
    return shares / shares.sum(dim=1, keepdim=True).double()


SHARES = Intervals.shares
EULER = partial(check_loss_by_hand, FLOW, "euler")
MIDPOINT = partial(check_loss_by_hand, FLOW, "midpoint")

MUTANTS = {
    "detached generator": Mutant.of(pdd, "through", look, EULER),
    "a prefix that ends where it begins": Mutant.of(
        pdd, "look", lambda model, x, t, cond, told: look(model, x, t, cond, {"r": told["r"], "s": told["r"]}), EULER
    ),
    "teacher asked where the block begins": Mutant.of(
        ParallelDecoding, "_aim", lambda self, field, x, t, s: field(x, 0 * t + t.max()).output(pdd.VELOCITY), EULER
    ),
    "midpoint without its half step": Mutant.of(
        ParallelDecoding, "_aim", lambda self, field, x, t, s: field(x, (t + s) / 2).output(pdd.VELOCITY), MIDPOINT
    ),
    "euler for midpoint": Mutant.of(
        ParallelDecoding, "_aim", lambda self, field, x, t, s: field(x, t).output(pdd.VELOCITY), MIDPOINT
    ),
    "errors of clean samples": Mutant.of(pdd, "VELOCITY", ROWS["x0"], EULER),
    "renoised on the way": Mutant.of(
        pdd, "walk", lambda *given, **named: walk(*given, **{**named, "sampler": "renoise"}), EULER
    ),
    "always from noise": Mutant.of(
        pdd, "islice", lambda stops, begin, end: stops, partial(check_every_interval_of_a_block_is_learned, FLOW)
    ),
    "two intervals for one": Mutant.of(pdd, "drawn_step", partial(told_from_the_next, 1), EULER),
    "intervals of other blocks": Mutant.of(
        pdd, "_within", lambda edges, begin, end: edges, partial(check_every_interval_of_a_block_is_learned, FLOW)
    ),
    "lengths in process time": Mutant.of(Intervals, "of", classmethod(by_process_time), partial(bank, VP)),
    "heads without their lengths": Mutant.of(Intervals, "shares", alike, partial(bank, VP)),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)


def test_settings_that_nothing_could_be_learned_with_are_refused():
    with pytest.raises(ValueError, match="heads is 0"):
        ParallelDecoding(heads=0)
