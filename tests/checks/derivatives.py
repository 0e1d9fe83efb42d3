"""Rates along trajectories, against differences along exact flow maps."""

import torch
from closed_forms import REAL, close, streams
from flow_maps import mapped
from torch import Tensor

from fastgen.objectives.parts.derivative import finite_differences, forward_mode
from fastgen.process import Process
from fastgen.proofs.analytic import ExactDenoiser

METHODS = {"forward": forward_mode, "differences": finite_differences}


def full(t: float, count: int = 8) -> Tensor:
    return torch.full((count,), t, dtype=torch.float64)


def check_rate(process: Process, method: str) -> None:
    """d D / d clock along the flow, from two points of the exact flow map a little apart."""
    model, t = ExactDenoiser(process, REAL), full(0.6)
    x = process.renoise(REAL.sample(8, streams()["rng"]), t, torch.randn(8, 2, dtype=torch.float64))
    cond = REAL.uncond(8)

    def curve(x: Tensor, clock: Tensor) -> Tensor:
        return model(x, process.from_clock(clock), cond).x0

    near, far = full(0.6 - 1e-4), full(0.6 + 1e-4)
    ends = [model(mapped(process, x, t, u), u, cond).x0 for u in (near, far)]
    expected = (ends[1] - ends[0]) / (process.clock(far) - process.clock(near))[:, None]
    unit = (process.clock(full(1.0)) - process.clock(full(0.0))) / 10
    found = METHODS[method](curve, process, x, t, model(x, t, cond).velocity, unit)
    close(found.value, model(x, t, cond).x0)
    torch.testing.assert_close(found.rate, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
