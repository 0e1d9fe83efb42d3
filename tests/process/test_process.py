"""The algebra as properties, in float64, and against Diffusers' own schedulers."""

import pytest
import torch
from processes_at_hand import PROCESSES, TIMES, processes, triple

from fastgen.process import (
    ROWS,
    Discrete,
    Flow,
    Prediction,
    Process,
)


@processes
def test_clean_data_is_time_zero(process: Process):
    zero = torch.zeros(1, dtype=torch.float64)
    assert process.alpha(zero) == 1
    assert process.sigma(zero) == 0
    assert process.logsnr(zero) == torch.inf
    assert process.time_of(torch.tensor([torch.inf])) == 0


@processes
def test_noise_grows_with_time(process: Process):
    assert (process.logsnr(torch.linspace(0, 1, 5001, dtype=torch.float64)).diff() < 0).all()


@processes
def test_clock_and_logsnr_invert(process: Process):
    torch.testing.assert_close(process.from_clock(process.clock(TIMES)), TIMES, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(process.time_of(process.logsnr(TIMES)), TIMES, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("ratio", [1.0, 30.0, 1000.0])
def test_times_of_log_snrs_of_uneven_schedules(ratio: float):
    """Where a long step follows a short one, a cubic is almost level at its knot."""
    logsnr = -torch.tensor([1.0, ratio, 1.0, ratio, ratio, 1.0], dtype=torch.float64).cumsum(dim=0) * 6 / ratio + 6
    process = Discrete(torch.sigmoid(logsnr))
    torch.testing.assert_close(process.time_of(process.logsnr(TIMES)), TIMES, rtol=1e-9, atol=1e-9)


@processes
def test_derivatives_are_by_the_clock(process: Process):
    clock = process.clock(TIMES.clone()).requires_grad_()
    for value, slope in ((process.alpha, process.d_alpha), (process.sigma, process.d_sigma)):
        level = value(process.from_clock(clock)) + 0 * clock
        (exact,) = torch.autograd.grad(level.sum(), clock, retain_graph=True)
        torch.testing.assert_close(slope(TIMES), exact, rtol=1e-8, atol=1e-8)


@processes
@pytest.mark.parametrize("row", ROWS)
def test_every_row_round_trips(process: Process, row: str):
    t = TIMES[TIMES > 0.3]
    x0, eps, x_t = triple(process, t)
    output = Prediction(process, t, x0, eps).output(ROWS[row])
    back = Prediction.solve(process, x_t, t, output, row=ROWS[row])
    scale = process.sigma(t).max()
    torch.testing.assert_close(back.x0, x0, rtol=1e-7, atol=1e-9 * float(scale))
    torch.testing.assert_close(back.eps, eps, rtol=1e-7, atol=1e-7)


@processes
def test_at_its_own_time_a_prediction_is_x_t(process: Process):
    x0, eps, x_t = triple(process, TIMES)
    prediction = Prediction(process, TIMES, x0, eps)
    torch.testing.assert_close(prediction.at(TIMES), x_t)
    torch.testing.assert_close(prediction.at(torch.zeros_like(TIMES)), x0)


def test_an_x0_network_at_zero_noise_is_believed():
    t = torch.zeros(2, dtype=torch.float64)
    x = torch.randn(2, 3)
    prediction = Prediction.of_x0(Flow(), x, t, x + 1)
    assert torch.equal(prediction.x0, x + 1)
    assert torch.equal(prediction.eps, torch.zeros_like(x))


def test_an_eps_network_at_zero_signal_is_a_true_singularity():
    t = torch.ones(2, dtype=torch.float64)
    assert not Prediction.solve(Flow(), torch.randn(2, 3), t, torch.randn(2, 3), row=ROWS["eps"]).x0.isfinite().any()


@processes
def test_transitions_compose(process: Process):
    s, u, t = (torch.full((1,), x, dtype=torch.float64) for x in (0.2, 0.5, 0.8))
    first, second, whole = process.transition(s, u), process.transition(u, t), process.transition(s, t)
    torch.testing.assert_close(first.scale * second.scale, whole.scale)
    torch.testing.assert_close((second.scale * first.std) ** 2 + second.std**2, whole.std**2)
    clean = process.transition(torch.zeros_like(t), t)
    torch.testing.assert_close(clean.scale, process.alpha(t))
    torch.testing.assert_close(clean.std, process.sigma(t))


@pytest.mark.parametrize("source", ["flow", "trig", "edm"])
@pytest.mark.parametrize("other", ["flow", "trig", "edm", "sd"])
def test_retargeting_keeps_x0_and_eps(source: str, other: str):
    ours, theirs = PROCESSES[source], PROCESSES[other]
    t = torch.linspace(0.3, 0.6, 7, dtype=torch.float64)
    x0, eps, x_t = triple(ours, t)
    seen = ours.retarget(theirs, t)
    x_u = theirs.renoise(x0, seen.t, eps)
    torch.testing.assert_close(seen.scale.reshape(-1, 1, 1, 1) * x_t, x_u, rtol=1e-6, atol=1e-6)


def test_retargeting_beyond_the_noisiest_level_stops_there():
    seen = Flow().retarget(PROCESSES["sd"], torch.ones(1, dtype=torch.float64))
    assert seen.t == 1
    torch.testing.assert_close(seen.scale, torch.ones(1, dtype=torch.float64))
