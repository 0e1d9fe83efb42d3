"""AnyFlow's rollouts against exact maps of Gaussians, and made wrong on purpose."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from average_velocities import C
from closed_forms import close, processes
from flow_maps import gaussian_batch, knowing_roles, mapped, two_times
from mutants import Mutant

from fastgen.models.calls import through
from fastgen.objectives import Needs
from fastgen.objectives.distribution import anyflow
from fastgen.objectives.distribution.anyflow import AnyFlow, jumped
from fastgen.objectives.parts.anchors import Diversity
from fastgen.objectives.parts.stabilisers import Stabilisers
from fastgen.process import Flow, Process

FLOW, COUNTS = Flow(), (1, 2, 5)


def drawn(seed: int) -> tuple[int, int]:
    """The number of steps, and the step, that a rollout draws; the grid comes between, of which there is one."""
    rng = gaussian_batch(seed=seed).shared_rng
    count = COUNTS[int(torch.randint(3, (), generator=rng))]
    torch.randint(1, (), generator=rng)
    return count, int(torch.randint(count, (), generator=rng))


def check_rollouts(process: Process) -> None:
    """Of the exact map all end in the trajectory's clean sample, whatever is drawn; every number of steps is."""
    roles, seen = knowing_roles(AnyFlow(), process, two_times), set()
    for seed in range(12):
        batch = gaussian_batch(seed=seed)
        z, one = process.prior(batch.script[0], batch.full(1.0)), batch.full(1.0)
        landing = jumped(roles, batch, counts=COUNTS)
        close(landing.x0, mapped(process, z, one, 0 * one), tolerance=1e-5)
        assert landing.s is None
        seen.add(drawn(seed))
    assert {count for count, _ in seen} == set(COUNTS)
    assert len(seen) > 4


def check_jumps() -> None:
    """Of a map that is wrong by C, by plain algebra: the step and the last jump have gradient, the first has none."""
    for seed in range(12):
        count, k = drawn(seed)
        roles, batch = knowing_roles(AnyFlow(), FLOW, two_times), gaussian_batch(seed=seed)
        roles.generator.bias.data.copy_(C)
        z, one = batch.script[0], batch.full(1.0)
        t, s = (batch.full(1 - i / count) for i in (k, k + 1))
        with roles.training(("generator",)):
            landing = jumped(roles, batch, counts=COUNTS)
            (slope,) = torch.autograd.grad(landing.x0.sum(), roles.generator.bias)
        c = C.clone().requires_grad_()
        x = mapped(FLOW, z, one, t) - (1 - t)[:, None] * C
        x = mapped(FLOW, x, t, s) - (t - s)[:, None] * c
        x = mapped(FLOW, x, s, 0 * s) - s[:, None] * c
        close(landing.x0, x, tolerance=1e-5)
        close(landing.t, t)
        close(slope, torch.autograd.grad(x.sum(), c)[0], tolerance=1e-4)
        told = [float(values["s"][0]) for values in roles.generator.told]
        expected = [float(t[0])] * (k > 0) + [float(s[0])] + [0.0] * (k + 1 < count)
        assert told == pytest.approx(expected)


@processes
def test_every_rollout_of_the_exact_map_ends_in_its_clean_sample(process: Process):
    check_rollouts(process)


def test_three_jumps():
    check_jumps()


def test_what_it_needs():
    own = Needs(real_score=True, null=True, sampler="ode", scalars={"generator": {"s"}})
    assert AnyFlow().needs | Needs(null=True) == own
    assert AnyFlow().cycle == (("generator",), *5 * (("fake_score",),))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (partial(AnyFlow, counts=()), r"counts is \[\]"),
        (partial(AnyFlow, counts=(4, 0)), r"counts is \[4, 0\]"),
        (partial(AnyFlow, stabilisers=Stabilisers(follow=0.03)), "the generator is told s beside its time"),
        (partial(AnyFlow, stabilisers=Stabilisers(diversity=Diversity(weight=0.1))), "is not told where they lead"),
    ],
)
def test_settings_that_mean_nothing_are_refused(build: Callable[[], object], words: str):
    with pytest.raises(ValueError, match=words):
        build()


def detached(*given: object) -> object:
    belief = through(*given)
    return replace(belief, x0=belief.x0.detach() + 0 * belief.x0, eps=belief.eps.detach())


MUTANTS = {
    "the first jump has gradient": Mutant.of(anyflow, "look", through, check_jumps),
    "the others have none": Mutant.of(anyflow, "through", detached, check_jumps),
    "told other times": Mutant.of(anyflow, "_told", lambda roles, s: {"s": s / 2}, check_jumps),
    "always the first step": Mutant.of(anyflow, "_drawn", lambda count, batch: 0, check_jumps),
    "another grid": Mutant.of(
        anyflow, "divided", lambda edges, count: DIVIDED(edges, count + 1)[1:], partial(check_rollouts, FLOW)
    ),
}
DIVIDED = anyflow.divided


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_objective_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    MUTANTS[name].must_be_noticed(monkeypatch)
