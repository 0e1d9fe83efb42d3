"""Processes are read from schedulers of Diffusers, and step as these do."""

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
from processes_at_hand import COSINE, SD, ZERO_SNR, triple

from fastgen.process import (
    ROWS,
    Discrete,
    Prediction,
    Trig,
    from_scheduler,
)


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
