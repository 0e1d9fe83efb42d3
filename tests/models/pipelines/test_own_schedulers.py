"""A teacher is held against the scheduler that it came with: what is taken has its x0, the rest is refused by name."""

import warnings
from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import scheduler_grid as grid
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepInverseScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from families import FAMILIES, denoiser

from fastgen.errors import UserError
from fastgen.models.denoiser import CallForm
from fastgen.models.pipelines import probe
from fastgen.models.pipelines.canonical import canonical
from fastgen.models.pipelines.oracle import Read
from fastgen.models.pipelines.own import hold_to_own_scheduler
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.process import ROWS, Flow, Prediction, Reading

STEPS = 4
CLOSE = 1e-4
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
UNET, FLOW = "stable_diffusion", "sd3"


@cache
def known(name: str) -> tuple[Any, dict[str, Any], Read]:
    """A pipeline, the call that it is held by, and what was read of it under the scheduler that it came with."""
    held: list[tuple[Any, ...]] = []
    pipe = FAMILIES[name].build()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "hold_to_own_scheduler", lambda *args, steps: held.append(args))
        Pipeline(pipe, size=FAMILIES[name].size)
    ((_, call, read),) = held
    return pipe, call, read


def hold(name: str, scheduler: Any, **wrong: Any) -> tuple[Reading, CallForm]:
    """The check alone, of a scheduler that is new to a pipeline."""
    pipe, call, read = known(name)
    pipe.register_modules(scheduler=scheduler)
    with canonical(pipe) as reading:
        read = replace(read, reading=replace(reading, **wrong))
    hold_to_own_scheduler(pipe, call, read, steps=STEPS)
    return read.reading, read.form


def whole(name: str, scheduler: Any) -> tuple[Reading, CallForm]:
    """All that decides whether a pipeline is taken."""
    pipe = known(name)[0]
    pipe.register_modules(scheduler=scheduler)
    pipeline = Pipeline(pipe, size=FAMILIES[name].size)
    return pipeline.reading, pipeline.form


def farthest(name: str, scheduler: Any, reading: Reading, form: CallForm) -> float:
    """The largest relative difference between our x0 and the own scheduler's, over the steps of a stock call."""
    pipe = known(name)[0]
    pipe.register_modules(scheduler=grid.unguarded(scheduler))
    call = {**FAMILIES[name].size, "prompt": "a", "guidance_scale": 1.0, "output_type": "latent"}
    gaps = []
    for stop in grid.stops(pipe, denoiser(pipe), {**call, "num_inference_steps": STEPS}):
        if (theirs := stop.x0) is not None:
            gaps.append(float((ours(stop, reading, form) - theirs).abs().max() / theirs.abs().max()))
    assert gaps, "the scheduler's x0 is known at no step"
    return max(gaps)


def ours(stop: grid.Stop, reading: Reading, form: CallForm) -> torch.Tensor:
    """Our x0 of what the network was given and said, at the level of its sample where its time was rounded."""
    said = float(torch.as_tensor(stop.told[form.timestep]).flatten()[0])
    u = torch.tensor([(said - form.offset) / form.slope], dtype=torch.float64)
    t = reading.time(u) if form.basis == "timestep" else u
    if stop.sigma is not None:
        sigma = torch.tensor([stop.sigma], dtype=torch.float64)
        t = sigma if isinstance(reading.process, Flow) else reading.process.time_of(-2 * sigma.log())
        assert abs(float(reading.timestep(t)) - float(u)) < 1.001, "the network is told another level's time"
    x = stop.told[form.sample].double() / reading.input_scale(t)
    output = form.sign * stop.output[:, : form.channels].double()
    return Prediction.solve(reading.process, x, t.expand(len(x)), output, row=reading.row).x0


def judged(name: str, kind: type, settings: dict[str, Any], check: Any) -> str:
    """Whether a pipeline with that scheduler is accepted; then its x0 is right."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scheduler = kind(**settings)
        except (TypeError, ValueError, LookupError, NotImplementedError):
            return "not made"  # by Diffusers itself
        try:
            reading, form = check(name, scheduler)
        except UserError:
            return "refused"
        gap = farthest(name, scheduler, reading, form)
    assert gap < CLOSE, f"{name}, {kind.__name__}({settings}): accepted, but its x0 is off by {gap:.2g}"
    return "accepted"


def is_flow(kind: type, settings: dict[str, Any]) -> bool:
    return kind.__name__.startswith("FlowM") or settings.get("use_flow_sigmas", False)


def test_every_scheduler_and_every_value_of_every_setting_is_read_right_or_refused():
    said = Counter(
        judged(FLOW if is_flow(kind, settings) else UNET, kind, settings, hold) for kind, settings in grid.thinned()
    )
    assert min(said["accepted"], said["refused"]) > 60, said


@pytest.mark.slow
@pytest.mark.parametrize("name", [UNET, FLOW])
def test_every_scheduler_in_every_setting_and_context_is_read_right_or_refused(name: str):
    said = Counter(judged(name, kind, settings, hold) for kind, settings in grid.combinations())
    print(name, dict(said))
    assert min(said["accepted"], said["refused"]) > 100, said


FINE = {
    "ancestral": (UNET, EulerAncestralDiscreteScheduler(**BETAS)),
    "consistency sampling": (UNET, LCMScheduler()),
    "multistep between trained levels": (UNET, DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)),
    "noisy multistep between trained levels": (
        UNET,
        DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True, algorithm_type="sde-dpmsolver++"),
    ),
    "not quite to clean data": (UNET, EulerDiscreteScheduler(**BETAS, final_sigmas_type="sigma_min")),
    "clipped": (UNET, DDPMScheduler(clip_sample=True, thresholding=True)),
    "stops beside its own timesteps": (UNET, DDIMScheduler(timestep_spacing="linspace", clip_sample=False)),
    "velocity of pure noise": (
        UNET,
        EulerDiscreteScheduler(
            **BETAS, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        ),
    ),
    "to the noise of the last stop": (UNET, EDMEulerScheduler(final_sigmas_type="sigma_min")),
    "noisy flow": (FLOW, FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True)),
    "flow in whole timesteps": (
        FLOW,
        UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    ),
}


@pytest.mark.parametrize("case", FINE)
def test_settings_that_only_choose_stops_and_samplers_are_accepted(case: str):
    name, scheduler = FINE[case]
    assert farthest(name, scheduler, *hold(name, scheduler)) < CLOSE


CONTINUOUS = {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0, "use_karras_sigmas": True}
MISREAD = {
    "noise grows": (FLOW, FlowMatchEulerDiscreteScheduler(invert_sigmas=True), r"invert_sigmas=True"),
    "a clock of its own": (
        UNET,
        EulerDiscreteScheduler(**BETAS, prediction_type="v_prediction", **CONTINUOUS),
        r"timestep_type=continuous.*the network is told",
    ),
    "levels that are not the told times'": (
        UNET,
        EulerDiscreteScheduler(**BETAS, interpolation_type="log_linear"),
        r"interpolation_type=log_linear.*the network is told 666 at the noise level of",
    ),
    "levels beyond the trained": (
        UNET,
        EulerDiscreteScheduler(**BETAS, use_karras_sigmas=True, sigma_max=30.0),
        r"sigma_max=30",
    ),
    "towards noise": (UNET, DPMSolverMultistepInverseScheduler(), "its last step ends at"),
    "epsilon over flow levels": (FLOW, UniPCMultistepScheduler(use_flow_sigmas=True), r"prediction_type=epsilon"),
    "x0 over flow levels": (
        FLOW,
        DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="sample"),
        r"prediction_type=sample",
    ),
}


@pytest.mark.parametrize("case", MISREAD)
def test_a_scheduler_that_means_something_else_is_refused_by_its_settings(case: str):
    name, scheduler, words = MISREAD[case]
    refusal = rf"own scheduler, {type(scheduler).__name__}\(.*{words}.*To mend it, save the pipeline with a plain"
    with pytest.raises(UserError, match=refusal):
        whole(name, scheduler)


WRONG = {
    "row": {"row": ROWS["v"]},
    "time": {"time": lambda u: (u.double() + 3) / 1000},
    "scale": {"input_scale": lambda t: torch.full_like(t, 1.001)},
}


@pytest.mark.parametrize("kind", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler, LCMScheduler])
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_reading_is_seen_under_deterministic_and_noisy_samplers(kind: type, fault: str):
    scheduler = kind(**BETAS)
    hold(UNET, scheduler)
    with pytest.raises(UserError, match="means something else by its network"):
        hold(UNET, scheduler, **WRONG[fault])


@pytest.mark.parametrize("kind", [kind for kind in grid.classes() if "rescale_betas_zero_snr" in grid.settings(kind)])
def test_epsilon_of_pure_noise_is_refused_under_every_scheduler(kind: type):
    pipe = known(UNET)[0]
    pipe.register_modules(scheduler=kind(rescale_betas_zero_snr=True))
    with pytest.raises(UserError, match=r"predicts epsilon, but its noisiest step is pure noise.*v_prediction if"):
        Pipeline(pipe, size=FAMILIES[UNET].size)


def test_a_schedule_that_rises_at_its_end_is_refused_and_the_remedy_works():
    settings = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    with pytest.raises(UserError, match=r"ends at 4\.2e-09, 6e-08.*save the pipeline with DDIMScheduler"):
        whole(UNET, EulerDiscreteScheduler(**settings))
    whole(UNET, DDIMScheduler(**settings))


def test_epsilon_under_betas_that_end_in_pure_noise_works_without_the_last_few():
    cosine = DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    with pytest.raises(UserError, match="trained_betas without the last few"):
        whole(UNET, cosine)
    betas = cosine.betas[:-4].tolist()
    whole(UNET, DDIMScheduler(trained_betas=betas, num_train_timesteps=len(betas)))
