"""Schedulers of few-step students: chosen by where the stock pipeline really stops."""

import math

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    SCMScheduler,
    ScoreSdeVeScheduler,
    UniPCMultistepScheduler,
)
from exporting import listed

from fastgen.errors import UserError
from fastgen.export.scheduler_export import scheduler_exports
from fastgen.export.stock_schedulers import FlowTimes, betas_of, noise_factors
from fastgen.process import even_grid, from_scheduler, shifted


def handed(scheduler, n: int) -> list[float]:
    """A pipeline that hands its scheduler even sigmas and a shift for its resolution, as Flux does."""
    scheduler.set_timesteps(sigmas=even_grid(n).tolist(), mu=math.log(1.9))
    return scheduler.timesteps.tolist()


def spread(scheduler, n: int) -> list[float]:
    """A pipeline that lets its scheduler spread the times, as SD3 does."""
    scheduler.set_timesteps(n, mu=math.log(1.9))
    return scheduler.timesteps.tolist()


def flow(**config) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**config)


@pytest.mark.parametrize("sampler", ["renoise", "ode"])
@pytest.mark.parametrize("shift", [0.5, 1.0, 1.73, 3.0, 6.0])
def test_one_flow_scheduler_serves_every_count_of_a_pipeline_that_hands_times_over(shift, sampler):
    (schedule,) = scheduler_exports(flow(shift=shift), (1, 2, 3, 4, 8), sampler=sampler, emitted=handed)
    assert schedule.folder == ""
    assert schedule.scheduler.config.stochastic_sampling is (sampler == "renoise")
    for n in schedule.steps:
        assert handed(schedule.scheduler, n) == pytest.approx((1000 * even_grid(n, shift=shift)).tolist(), abs=1e-3)


@pytest.mark.parametrize("shift", [0.5, 1.0, 1.73, 3.0, 6.0])
def test_each_count_has_its_own_scheduler_where_times_are_spread(shift):
    chosen = scheduler_exports(flow(shift=shift), (1, 2, 3, 4, 8), sampler="ode", emitted=spread)
    assert [schedule.folder for schedule in chosen] == ["1step", "2step", "3step", "4step", "8step"]
    assert chosen[0].scheduler.config.shift_terminal is None
    for schedule in chosen:
        (n,) = schedule.steps
        assert spread(schedule.scheduler, n) == pytest.approx((1000 * even_grid(n, shift=shift)).tolist(), abs=1e-3)


def test_the_spread_shift_is_the_known_one():
    assert FlowTimes(3.0).spread_shift(4) == pytest.approx(2.00402, abs=1e-5)
    assert FlowTimes(3.0).spread_shift(3) == pytest.approx(1.802602, abs=1e-6)
    assert FlowTimes(1.0).spread_shift(4) == 1.0
    assert math.isnan(FlowTimes(1e4).spread_shift(32))


def test_a_shift_beyond_reach_is_refused_with_the_counts_that_work():
    with pytest.raises(UserError, match=r"32 \(the pipeline stops at .* declare some of 1, 2, 3, 4, 8"):
        scheduler_exports(flow(shift=1e4), (32,), sampler="ode", emitted=spread)


@pytest.mark.parametrize("pipeline", [handed, spread])
@pytest.mark.parametrize("stretched", [None, 0.02])
def test_a_resolution_dependent_shift_becomes_the_static_one(pipeline, stretched):
    stock = flow(use_dynamic_shifting=True, shift=3.0, shift_terminal=stretched)
    (schedule,) = scheduler_exports(stock, (4,), sampler="ode", emitted=pipeline)
    assert schedule.scheduler.config.use_dynamic_shifting is False
    wanted = 1000 * shifted(even_grid(4), 1.9)
    assert pipeline(schedule.scheduler, 4) == pytest.approx(wanted.tolist(), abs=1e-2)


def test_a_shift_that_is_asked_for_wins():
    (schedule,) = scheduler_exports(flow(use_dynamic_shifting=True), (2,), sampler="ode", emitted=handed, shift=5.0)
    assert handed(schedule.scheduler, 2)[1] == pytest.approx(1000 * 5 / 6, abs=1e-3)
    with pytest.raises(UserError, match="shift is 5, but the times of DDIMScheduler cannot be shifted"):
        scheduler_exports(DDIMScheduler(), (2,), sampler="ode", emitted=listed, shift=5.0)


def test_a_solver_of_a_flow_is_replaced_with_its_shift():
    stock = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    (schedule,) = scheduler_exports(stock, (2,), sampler="ode", emitted=spread)
    assert spread(schedule.scheduler, 2) == pytest.approx([1000, 1000 * 5 / 6], abs=1e-3)


def test_a_pipeline_with_times_of_its_own_is_refused_by_count():
    def stubborn(_scheduler, n):
        return [1000.0, 500.0][:n]

    with pytest.raises(UserError, match=r"2 \(the pipeline stops at 1000, 500 instead of 1000, 750\).* some of 1$"):
        scheduler_exports(flow(shift=3.0), (1, 2), sampler="ode", emitted=stubborn)


STOCK = {
    "zero-snr shifted": CogVideoXDDIMScheduler(snr_shift_scale=3.0, rescale_betas_zero_snr=True),
    "snr shifted": CogVideoXDDIMScheduler(snr_shift_scale=3.0),
    "euler zero-snr": EulerDiscreteScheduler(rescale_betas_zero_snr=True, beta_schedule="scaled_linear"),
    "kolors": EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.014, num_train_timesteps=1100
    ),
    "hunyuan": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.03),
    "known to ddpm alone": DDPMScheduler(beta_schedule="sigmoid"),
    "sd": DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
}


@pytest.mark.parametrize("sampler", ["renoise", "ode"])
@pytest.mark.parametrize("name", STOCK)
def test_the_noise_levels_are_the_teachers_also_after_a_reload(tmp_path, name, sampler):
    stock = STOCK[name]
    (schedule,) = scheduler_exports(stock, (1, 2), sampler=sampler, emitted=listed)
    schedule.scheduler.save_pretrained(tmp_path)
    again = type(schedule.scheduler).from_pretrained(tmp_path)
    assert (again.alphas_cumprod - stock.alphas_cumprod).abs().max() <= 1e-7
    assert listed(again, 2) == [len(stock.alphas_cumprod) - 1, len(stock.alphas_cumprod) // 2 - 1]


def test_written_betas_make_up_for_their_rounding():
    power = STOCK["snr shifted"].alphas_cumprod
    reached = torch.cumprod(1 - torch.tensor(betas_of(power)), 0)
    assert (reached / power - 1).abs().max() <= 3e-6
    assert betas_of(STOCK["zero-snr shifted"].alphas_cumprod)[-1] == 1.0


def test_lcm_serves_every_count_and_ddim_those_that_divide():
    (schedule,) = scheduler_exports(DDIMScheduler(), (1, 2, 3, 4, 8), sampler="renoise", emitted=listed)
    assert listed(schedule.scheduler, 3) == [999, 666, 333]
    assert listed(schedule.scheduler, 8) == [999, 874, 749, 624, 499, 374, 249, 124]
    with pytest.raises(UserError, match=r"3 \(a deterministic step must divide 1000 .* declare some of 1, 2, 4, 8"):
        scheduler_exports(DDIMScheduler(), (1, 3), sampler="ode", emitted=listed)


def test_edm_students_stop_inside_the_trained_levels():
    stock = EDMEulerScheduler()
    (schedule,) = scheduler_exports(stock, (1, 4), sampler="ode", emitted=listed)
    sigmas = [math.exp(4 * t) for t in listed(schedule.scheduler, 4)]
    ramp = [(80 ** (1 / 7) + i / 4 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(4)]
    assert sigmas == pytest.approx(ramp, rel=1e-4)
    assert len(scheduler_exports(stock, (2, 4), sampler="ode", emitted=listed)) == 2
    with pytest.raises(UserError, match=r"set student.sampler to ode, or one step"):
        scheduler_exports(stock, (1, 4), sampler="renoise", emitted=listed)
    assert noise_factors(schedule.scheduler, [1.0, 0.5]) == [pytest.approx(math.sqrt(6401) / 80), 1.0]


def test_consistency_students_never_stop_at_clean_data():
    (schedule,) = scheduler_exports(
        CMStochasticIterativeScheduler(), (1, 2, 3, 4, 8), sampler="renoise", emitted=listed
    )
    assert schedule.scheduler.config.clip_denoised is False
    for n in (2, 3, 4, 8):
        sigmas = [math.exp(t / 250) for t in listed(schedule.scheduler, n)]
        assert sigmas[0] == pytest.approx(80)
        assert sigmas[-1] > 0.02
        assert sigmas == sorted(sigmas, reverse=True)
    reading = from_scheduler(schedule.scheduler)
    assert reading.process == from_scheduler(CMStochasticIterativeScheduler()).process
    with pytest.raises(UserError, match=r"declare some of 1$"):
        scheduler_exports(CMStochasticIterativeScheduler(), (2,), sampler="ode", emitted=listed)


def test_sana_sprint_serves_two_steps_alone():
    (schedule,) = scheduler_exports(SCMScheduler(), (2,), sampler="renoise", emitted=lambda s, n: listed(s, n)[:-1])
    assert isinstance(schedule.scheduler, SCMScheduler)
    with pytest.raises(UserError, match=r"1 \(SANA-Sprint's plain call makes 2 steps.* declare some of 2$"):
        scheduler_exports(SCMScheduler(), (1, 2), sampler="renoise", emitted=lambda s, n: listed(s, n)[:-1])


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(UserError, match="students of ScoreSdeVeScheduler pipelines cannot be exported"):
        scheduler_exports(ScoreSdeVeScheduler(), (1,), sampler="ode", emitted=listed)
