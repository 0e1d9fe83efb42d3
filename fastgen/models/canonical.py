"""The plainest scheduler of a pipeline's process, to watch a network by."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import DDIMScheduler, DiffusionPipeline, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from ..errors import UserError
from ..process import Discrete, Flow, Reading, Trig, from_scheduler
from . import trigflow
from .watch import Step


def reading_of(scheduler: Any) -> Reading:
    """A scheduler in our terms, as the network behind it sees them.

    Raises:
        ValueError: a scheduler of none of the four families.
    """
    reading = from_scheduler(scheduler)
    return trigflow.READING if isinstance(reading.process, Trig) else reading


@contextmanager
def canonical(pipe: DiffusionPipeline) -> Iterator[Reading]:
    """Within, the process is run by its plainest scheduler, which keeps x_t as it is and steps deterministically.

    DDIM for a discrete process (Euler's would keep x_t / alpha), Euler for flow matching; others stay.
    """
    original = pipe.scheduler
    reading = _own_reading(pipe)
    if isinstance(reading.process, Discrete):
        pipe.scheduler = _ddim(original)
    elif isinstance(reading.process, Flow) and not isinstance(from_scheduler(original).process, Trig):
        config = original.config
        shift = config.get("shift") or config.get("flow_shift") or 1.0
        dynamic = bool(config.get("use_dynamic_shifting"))
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=config.num_train_timesteps, shift=shift, use_dynamic_shifting=dynamic
        )
    try:
        yield reading
    finally:
        pipe.scheduler = original


def is_deterministic(pipe: DiffusionPipeline) -> bool:
    """Whether its scheduler walks from x_t to x_s along the x0 and eps that the network sees."""
    plain = (DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler)
    return isinstance(pipe.scheduler, plain) and not pipe.scheduler.config.get("stochastic_sampling")


def _ddim(original: Any) -> DDIMScheduler:
    known = inspect.signature(DDIMScheduler).parameters
    config = {key: value for key, value in original.config.items() if key in known}
    fixed = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(**{**config, **fixed})
    scheduler.alphas_cumprod = original.alphas_cumprod.clone()  # some schedulers bend them after their betas
    return scheduler


def _own_reading(pipe: DiffusionPipeline) -> Reading:
    try:
        return reading_of(pipe.scheduler)
    except ValueError as error:
        raise UserError(f"the scheduler of {type(pipe).__name__} cannot be read: {error}") from error


def view(pipe: DiffusionPipeline, step: Step) -> Step:
    """The step as the network sees it; only TrigFlow loops show their scheduler something else."""
    if isinstance(from_scheduler(pipe.scheduler).process, Trig):
        return trigflow.as_flow(step, sigma_data=pipe.scheduler.config.sigma_data)
    return step
