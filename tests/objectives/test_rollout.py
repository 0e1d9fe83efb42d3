"""How the generator is run in training."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from closed_forms import OTHER_FACTOR, OTHER_MEAN, PLANE, REAL, close, processes, scripted, streams
from recorder import STOPS, recorded_roles
from torch import Tensor

from fastgen.objectives import Batch
from fastgen.objectives.parts.rollout import ROLLOUTS, land, landed, phased
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.toy import toy_batch


def check_backward_simulation(process: Process) -> None:
    depths = set()
    for seed in range(24):
        roles, recorder = recorded_roles(process, [STOPS])
        script = list(torch.randn(4, 6, 2, dtype=torch.float64))
        batch = scripted(*script, seed=seed)
        with roles.training(("generator",)):
            landing = land("backward_simulation", roles, batch)
            (slope,) = torch.autograd.grad(landing.x.sum(), recorder.inner.mean)
        depth = len(recorder.calls) - 1
        depths.add(depth)
        close(torch.stack([call.t[0] for call in recorder.calls]), STOPS[: depth + 1])
        close(recorder.calls[0].x_t, process.prior(script[0], batch.full(0.9)))
        for i in range(1, depth + 1):
            expected = process.alpha(STOPS[i]) * recorder.calls[i - 1].x0 + process.sigma(STOPS[i]) * script[i]
            close(recorder.calls[i].x_t, expected)
        assert [call.recorded_graph for call in recorder.calls] == depth * [False] + [True]
        close(slope, torch.full((2,), 6.0, dtype=torch.float64))
        assert torch.equal(landing.t, batch.full(STOPS[depth]))
        assert torch.equal(landing.s, batch.full(0.0))
    assert depths == {0, 1, 2, 3}


@processes
def test_backward_simulation_is_the_generators_own_sampling(process: Process):
    check_backward_simulation(process)


def test_the_depth_is_that_of_the_shared_stream():
    depths = []
    for seed in (1, 2):
        rng, shared_rng = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(7)
        roles, recorder = recorded_roles(Flow(), [even_grid(4), even_grid(2)])
        batch = Batch(REAL.uncond(4), (2,), rng, shared_rng)
        counts = []
        for _ in range(16):
            land("backward_simulation", roles, batch)
            counts.append(len(recorder.calls))
        depths.append(counts)
    assert depths[0] == depths[1]
    assert len(set(torch.tensor(depths[0]).diff().tolist())) == 4


@processes
def test_one_step_is_one_call_at_the_first_time_of_a_grid(process: Process):
    roles, recorder = recorded_roles(process, [STOPS, even_grid(2)])
    z = torch.randn(6, 2, dtype=torch.float64)
    starts = set()
    for seed in range(8):
        landing = land("one_step", roles, scripted(z, seed=seed))
        close(landing.x, OTHER_MEAN + z @ OTHER_FACTOR.T)
        starts.add(landing.t[0].item())
    assert len(recorder.calls) == 8
    assert starts == {0.9, 1.0}


@processes
def test_noised_data_starts_from_real_samples(process: Process):
    starts = set()
    for seed in range(24):
        roles, recorder = recorded_roles(process, [STOPS])
        real, eps = torch.randn(2, 6, 2, dtype=torch.float64)
        t = land("noised_data", roles, scripted(eps, seed=seed, real=real)).t
        fresh = process.prior(eps, t) if t[0] == STOPS[0] else process.renoise(real, t, eps)
        close(recorder.calls[0].x_t, fresh)
        starts.add(t[0].item())
    assert starts == set(STOPS.tolist())


def test_turns_that_share_a_batch_share_its_rollout():
    roles, recorder = recorded_roles(Flow(), [even_grid(1)])
    with roles.training(("generator",)):
        first, second = (toy_batch(PLANE, 8, *streams(seed).values()) for seed in (0, 1))
        x = land("one_step", roles, first).x
        kept = landed("one_step", roles, first)
        fresh = landed("one_step", roles, second)
        assert torch.equal(landed("one_step", roles, second).x, fresh.x)
    assert torch.equal(kept.x, x)
    assert x.requires_grad
    assert not kept.x.requires_grad
    assert not fresh.x.requires_grad
    assert len(recorder.calls) == 2


# Deterministic rollouts that end before the clean sample


def check_deterministic_rollout(process: Process, rollout: str, ends: list[float], **settings: int) -> None:
    """The ODE's steps without gradient, then one with it to the end of each depth's segment."""
    depths = set()
    for seed in range(24):
        roles, recorder = recorded_roles(process, [STOPS])
        roles.student = replace(roles.student, sampler="ode")
        z = torch.randn(6, 2, dtype=torch.float64)
        with roles.training(("generator",)):
            landing = land(partial(ROLLOUTS[rollout], **settings), roles, scripted(z, seed=seed))
            (slope,) = torch.autograd.grad(landing.x.sum(), recorder.inner.mean, retain_graph=True)
            (clean_slope,) = torch.autograd.grad(landing.x0.sum(), recorder.inner.mean)
        depth = len(recorder.calls) - 1
        depths.add(depth)
        alphas, sigmas = process.alpha(STOPS), process.sigma(STOPS)
        x = process.prior(z, torch.full((6,), STOPS[0].item(), dtype=torch.float64))
        for i, call in enumerate(recorder.calls):
            close(call.x_t, x)
            close(call.t, torch.full((6,), STOPS[i].item(), dtype=torch.float64))
            noise = (x - alphas[i] * call.x0) / sigmas[i]
            following = torch.tensor(ends[depth] if i == depth else STOPS[i + 1].item(), dtype=torch.float64)
            x = process.alpha(following) * call.x0 + process.sigma(following) * noise
        share = process.alpha(following) - process.sigma(following) * alphas[depth] / sigmas[depth]
        close((landing.x, landing.x0), (x, recorder.calls[-1].x0))
        close((landing.s, landing.t), (following.expand(6), STOPS[depth].expand(6)))
        assert [call.recorded_graph for call in recorder.calls] == depth * [False] + [True]
        close((slope, clean_slope), (6 * share.expand(2), torch.full((2,), 6.0, dtype=torch.float64)))
    assert depths == {0, 1, 2, 3}


@processes
def test_a_trajectory_lands_on_the_next_time_of_the_grid(process: Process):
    check_deterministic_rollout(process, "trajectory", [0.7, 0.4, 0.2, 0.0])


@processes
@pytest.mark.parametrize(
    ("phases", "ends"),
    [(1, [0.0] * 4), (2, [0.4, 0.4, 0.0, 0.0]), (3, [0.4, 0.4, 0.2, 0.0]), (4, [0.7, 0.4, 0.2, 0.0])],
)
def test_a_phase_ends_where_its_last_step_does(process: Process, phases: int, ends: list[float]):
    check_deterministic_rollout(process, "phased", ends, phases=phases)


@pytest.mark.parametrize(("grid", "phases", "ends"), [(STOPS[:3], 2, [0.4, 0.4, 0.0]), (STOPS[:2], 2, [0.7, 0.0])])
def test_the_first_phases_get_the_odd_step(grid: Tensor, phases: int, ends: list[float]):
    seen = {}
    for seed in range(24):
        roles, _ = recorded_roles(Flow(), [grid])
        roles.student = replace(roles.student, sampler="ode")
        landing = land(partial(phased, phases=phases), roles, scripted(torch.randn(2, 2), seed=seed))
        seen[landing.t[0].item()] = landing.s[0].item()
    assert seen == dict(zip(grid.tolist(), ends, strict=True))


def test_a_landing_on_a_clean_sample_is_its_prediction():
    roles, _ = recorded_roles(Flow(), [even_grid(1)])
    roles.student = replace(roles.student, sampler="ode")
    landing = land("trajectory", roles, scripted(torch.randn(4, 2)))
    assert landing.x is landing.x0
