"""Rollouts of the generator in training, call by call."""

from dataclasses import replace
from functools import partial

import torch
from closed_forms import close, scripted
from recorder import STOPS, recorded_roles

from fastgen.objectives.parts.rollout import ROLLOUTS, land
from fastgen.process import Process


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
        assert torch.equal(landing.landed, batch.full(0.0))
    assert depths == {0, 1, 2, 3}


def check_deterministic_rollout(process: Process, rollout: str, ends: list[float], **settings: int) -> None:
    """The ODE's steps without gradient, then one with it to the end of each depth's segment."""
    depths = set()
    for seed in range(24):
        roles, recorder = recorded_roles(process, [STOPS])
        roles.plan = replace(roles.plan, sampler="ode")
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
        close((landing.landed, landing.t), (following.expand(6), STOPS[depth].expand(6)))
        assert [call.recorded_graph for call in recorder.calls] == depth * [False] + [True]
        close((slope, clean_slope), (6 * share.expand(2), torch.full((2,), 6.0, dtype=torch.float64)))
    assert depths == {0, 1, 2, 3}
