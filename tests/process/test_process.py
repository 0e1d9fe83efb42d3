"""The algebra as properties, in float64, and against Diffusers' own schedulers."""

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    SCMScheduler,
)

from fastgen.process import (
    EDM,
    ROWS,
    Discrete,
    Flow,
    Karras,
    LogitNormal,
    LogNormal,
    Prediction,
    Process,
    Trig,
    Uniform,
    even_grid,
    from_scheduler,
    laid,
    shifted,
)

SD = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
COSINE = DDIMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
ZERO_SNR = DDIMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
PROCESSES = {
    "sd": Discrete(SD.alphas_cumprod),
    "cosine": Discrete(COSINE.alphas_cumprod),
    "zero_snr": Discrete(ZERO_SNR.alphas_cumprod),
    "flow": Flow(),
    "edm": EDM(),
    "trig": Trig(),
}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
TIMES = torch.linspace(0.0005, 0.999, 801, dtype=torch.float64)


def triple(process: Process, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x0, eps = torch.randn(2, len(t), 3, 2, 2, dtype=torch.float64)
    return x0, eps, process.renoise(x0, t, eps)


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


@pytest.mark.parametrize("scheduler", [SD, COSINE, ZERO_SNR], ids=["sd", "cosine", "zero_snr"])
def test_discrete_steps_are_exact_and_agree_with_diffusers(scheduler: DDIMScheduler):
    process = Discrete(scheduler.alphas_cumprod)
    steps = torch.arange(1000)
    t = process.from_clock(steps.double())
    power = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(process.alpha(t), power.sqrt(), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(process.sigma(t), (1 - power).sqrt(), rtol=1e-9, atol=1e-15)
    x0, eps, x_t = triple(process, t)
    torch.testing.assert_close(x_t, scheduler.add_noise(x0, eps, steps), rtol=1e-6, atol=1e-6)
    v = Prediction(process, t, x0, eps).output(ROWS["v"])
    torch.testing.assert_close(v, scheduler.get_velocity(x0, eps, steps), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_at_is_the_ddim_step(kind: str):
    scheduler = DDIMScheduler(
        prediction_type=kind, clip_sample=False, timestep_spacing="trailing", beta_schedule="scaled_linear"
    )
    scheduler.set_timesteps(10)
    reading = from_scheduler(scheduler)
    x, output = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64)
    for step in (799, 499, 199):
        t, s = (reading.time(torch.tensor([float(u)])) for u in (step, step - 100))
        ours = Prediction.solve(reading.process, x, t, output, row=reading.row).at(s)
        torch.testing.assert_close(ours, scheduler.step(output, step, x).prev_sample, rtol=1e-6, atol=1e-6)


def test_at_is_the_flow_euler_step():
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(6)
    reading = from_scheduler(scheduler)
    x, output = torch.randn(2, 1, 4, 2, 2)
    for i, step in enumerate(scheduler.timesteps[:-1]):
        t, s = (reading.time(u.reshape(1)) for u in scheduler.timesteps[i : i + 2])
        ours = Prediction.solve(reading.process, x, t, output, row=reading.row).at(s)
        torch.testing.assert_close(ours, scheduler.step(output, step, x).prev_sample, rtol=1e-5, atol=1e-5)


def test_consistency_scheduler_is_read_exactly():
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40, clip_denoised=False)
    scheduler.set_timesteps(1)
    reading = from_scheduler(scheduler)
    step = scheduler.timesteps[:1]
    t = reading.time(step)
    x, output = 80 * torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    assert abs(float(reading.timestep(t)) - float(step)) < 1e-4 * float(step)
    scaled = reading.input_scale(t).reshape(1, 1, 1, 1) * x
    torch.testing.assert_close(scaled.float(), scheduler.scale_model_input(x, step[0]), rtol=1e-5, atol=1e-6)
    ours = Prediction.solve(reading.process, x, t, output, row=reading.row).x0
    torch.testing.assert_close(ours, scheduler.step(output, step[0], x).prev_sample, rtol=1e-4, atol=1e-4)


def test_edm_scheduler_is_read_exactly():
    scheduler = EDMEulerScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(8)
    reading = from_scheduler(scheduler)
    sigma = scheduler.sigmas[3:4]
    t = reading.process.from_clock(sigma)
    x, output = torch.randn(2, 1, 3, 4, 4)
    torch.testing.assert_close(reading.timestep(t).float(), scheduler.timesteps[3:4])
    ours = Prediction.solve(reading.process, x, t, output, row=reading.row).x0
    torch.testing.assert_close(ours, scheduler.precondition_outputs(x, output, sigma), rtol=1e-5, atol=1e-5)


def test_trig_scheduler_is_read():
    assert isinstance(from_scheduler(SCMScheduler()).process, Trig)


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(ValueError, match="none of the known families"):
        from_scheduler(type("Odd", (), {"config": {}})())


def test_ddpm_and_ddim_are_the_same_process():
    assert torch.equal(from_scheduler(DDPMScheduler()).process.alphas_cumprod, DDIMScheduler().alphas_cumprod)


@processes
@pytest.mark.parametrize(
    "law", [Uniform(0.02, 0.98, shift=5.0), Karras(), LogitNormal(shift=3.0), LogNormal()], ids=repr
)
def test_time_laws_stay_in_range_and_follow_the_seed(process: Process, law):
    draw = [law.sample(process, 4000, torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draw)
    assert draw[0].dtype == torch.float64
    assert (draw[0] > 0).all()
    assert (draw[0] <= 1).all()


def test_the_lognormal_law_is_in_log_sigma():
    process = EDM()
    t = LogNormal(mean=-1.2, std=1.2).sample(process, 20000, torch.Generator().manual_seed(0))
    log_sigma = process.sigma(t).log()
    assert abs(log_sigma.mean() + 1.2) < 0.03
    assert abs(log_sigma.std() - 1.2) < 0.03


KARRAS = {0.0: 0.002, 0.02: 0.0032300924, 0.5: 2.515218976, 0.8: 24.40834179, 0.98: 71.66310295, 1.0: 80.0}
"""Levels at shares of Karras's ramp, by its formula."""


@processes
def test_the_karras_law_has_the_levels_of_edms_ramp(process: Process):
    """At most the noisiest of the process; EDM's own times are even along it."""
    share, sigma = (torch.tensor(list(values), dtype=torch.float64) for values in (KARRAS, KARRAS.values()))
    level = (process.sigma(one := torch.ones(1, dtype=torch.float64)) / process.alpha(one)).nan_to_num(posinf=1e9)
    t = Karras().at(process, share)
    torch.testing.assert_close(process.sigma(t) / process.alpha(t), sigma.clamp(max=level), rtol=1e-8, atol=0)
    if isinstance(process, EDM):
        torch.testing.assert_close(t, share, rtol=0, atol=2e-6)


@pytest.mark.parametrize("law", [Karras(0.0, 0.8), Uniform(0.0, 0.8)], ids=repr)
def test_laws_on_edm_reach_from_its_smallest_noise(law):
    """SiD's levels are those up to index 800 of 1000: 0.002 to 24.4, half of them above 0.966."""
    sigma = EDM().sigma(law.sample(EDM(), 20000, torch.Generator().manual_seed(0)))
    assert 0.00199 < sigma.min() < 0.0021
    assert 24.3 < sigma.max() < 24.41
    assert abs(sigma.median() - 0.966) < 0.1


def test_edm_runs_on_to_clean_data_below_its_smallest_noise():
    process = EDM()
    t = process.from_clock(torch.tensor([0.0, 0.001, 0.002, 0.0021], dtype=torch.float64))
    assert t[0] == 0
    assert (t.diff() > 0).all()
    torch.testing.assert_close(process.sigma(t), torch.tensor([0.0, 0.001, 0.002, 0.0021], dtype=torch.float64))
    assert float(process.sigma(torch.ones(1))) == 80


def test_the_smallest_noise_is_the_schedulers():
    reading = from_scheduler(EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0))
    low, high = reading.process.sigma(torch.tensor([1e-5, 1.0], dtype=torch.float64))
    assert (float(low), float(high)) == pytest.approx((0.01, 50.0), rel=1e-3)


def test_a_uniform_law_may_be_shifted_towards_the_noise():
    """Its bounds are those before the shift: 5 * 0.02 / 1.08 and 5 * 0.98 / 4.92."""
    t = Uniform(0.02, 0.98, shift=5.0).sample(Flow(), 20000, torch.Generator().manual_seed(0))
    assert (round(float(t.min()), 3), round(float(t.max()), 3)) == (0.093, 0.996)
    assert abs(float(t.median()) - 5 / 6) < 0.005


@pytest.mark.parametrize(
    ("law", "wrong", "rule"),
    [
        (Karras, {"low": 0.5, "high": 0.5}, "low < high"),
        (Karras, {"sigma_min": 0.0}, "0 < sigma_min"),
        (Uniform, {"shift": 0.0}, "above 0"),
    ],
)
def test_a_law_that_is_none_is_refused(law, wrong: dict, rule: str):
    with pytest.raises(ValueError, match=rule):
        law(**wrong)


def test_a_shift_counts_from_clean_data_also_above_a_phases_end():
    """Even raw steps above 500 of 1000 under shift 7, as Phased DMD's trainer draws them: 7 r / (1 + 6 r)."""
    raw = torch.tensor([0.5, 0.6, 0.8, 1.0], dtype=torch.float64)
    law, end = Uniform(shift=7.0), shifted(raw[:1], 7.0).expand(4)
    t = shifted((raw - 0.5) / 0.5, 7.0)
    torch.testing.assert_close(laid(law, t, end, torch.ones_like(end)), 7 * raw / (1 + 6 * raw))
    torch.testing.assert_close(laid(Karras(), t, 0.5 + 0 * t, 1 + 0 * t), 0.5 + 0.5 * t)


def test_grids_descend_from_one():
    torch.testing.assert_close(even_grid(4), torch.tensor([1, 0.75, 0.5, 0.25], dtype=torch.float64))
    torch.testing.assert_close(even_grid(4, shift=3.0), torch.tensor([1, 0.9, 0.75, 0.5], dtype=torch.float64))


def test_a_law_with_times_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match="0 <= low < high <= 1"):
        Uniform(0.5, 1.5)
