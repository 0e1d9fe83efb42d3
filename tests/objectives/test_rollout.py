"""How the generator is run in training."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from closed_forms import OTHER_FACTOR, OTHER_MEAN, PLANE, REAL, close, processes, scripted, streams
from recorder import STOPS, recorded_roles
from rollouts import check_backward_simulation, check_deterministic_rollout
from torch import Tensor

from fastgen.objectives import Batch
from fastgen.objectives.parts.rollout import land, landing_of, phased
from fastgen.process import Flow, Process, even_grid
from fastgen.proofs.toy import toy_batch


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
        kept = landing_of("one_step", roles, first)
        fresh = landing_of("one_step", roles, second)
        assert torch.equal(landing_of("one_step", roles, second).x, fresh.x)
    assert torch.equal(kept.x, x)
    assert x.requires_grad
    assert not kept.x.requires_grad
    assert not fresh.x.requires_grad
    assert len(recorder.calls) == 2


# Deterministic rollouts that end before the clean sample


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
        roles.plan = replace(roles.plan, sampler="ode")
        landing = land(partial(phased, phases=phases), roles, scripted(torch.randn(2, 2), seed=seed))
        seen[landing.t[0].item()] = landing.landed[0].item()
    assert seen == dict(zip(grid.tolist(), ends, strict=True))


def test_a_landing_on_a_clean_sample_is_its_prediction():
    roles, _ = recorded_roles(Flow(), [even_grid(1)])
    roles.plan = replace(roles.plan, sampler="ode")
    landing = land("trajectory", roles, scripted(torch.randn(4, 2)))
    assert landing.x is landing.x0
