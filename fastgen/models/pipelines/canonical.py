"""The plainest scheduler of a pipeline's process, to watch a network by."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from ...errors import UserError
from ...process import ROWS, Discrete, Flow, Reading, Trig, from_scheduler
from . import trigflow
from .stock_pipeline import DiscreteScheduler, StockPipeline, StockScheduler
from .watch import Step

PURE_NOISE = 2.0**-24  # of alpha squared: what float32 does not see beside 1; Euler schedulers put it for 0


def reading_of(scheduler: Any) -> Reading:
    """A scheduler in our terms, as the network behind it sees them.

    Raises:
        ValueError: a scheduler of none of the four families.
    """
    reading = from_scheduler(scheduler)
    return trigflow.READING if isinstance(reading.process, Trig) else reading


def static_shift(scheduler: Any) -> float:
    """The shift of a flow scheduler's times that does not depend on the resolution; 1 where it names none."""
    return float(scheduler.config.get("shift") or scheduler.config.get("flow_shift") or 1.0)


def unit(scheduler: Any) -> float:
    """The standard deviation of data in a stock scheduler's samples, over the process's own (TrigFlow's sigma_data)."""
    return float(scheduler.config.sigma_data) if isinstance(from_scheduler(scheduler).process, Trig) else 1.0


@contextmanager
def canonical(pipe: StockPipeline) -> Iterator[Reading]:
    """Within, the process is run by its plainest scheduler, which keeps x_t as it is and steps deterministically.

    DDIM for a discrete process (Euler's would keep x_t / alpha), Euler for flow matching; others stay.

    Raises:
        UserError: the scheduler is of no known family, or predicts epsilon where nothing but noise is left.
    """
    original = pipe.scheduler
    reading = _own_reading(pipe)
    if isinstance(reading.process, Discrete):
        pipe.scheduler = _ddim(original)
    elif isinstance(reading.process, Flow) and not isinstance(from_scheduler(original).process, Trig):
        pipe.scheduler = _euler(original)
    try:
        yield reading
    finally:
        pipe.scheduler = original


def is_deterministic(pipe: StockPipeline) -> bool:
    """Whether its scheduler walks from x_t to x_s along the x0 and eps that the network sees."""
    plain = (DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler)
    stochastic = pipe.scheduler.config.get("stochastic_sampling")
    return isinstance(pipe.scheduler, plain) and not stochastic


def _euler(original: StockScheduler) -> StockScheduler:
    scheduler = FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=original.config.num_train_timesteps,
        shift=static_shift(original),
        use_dynamic_shifting=bool(original.config.get("use_dynamic_shifting")),
    )
    return cast(StockScheduler, scheduler)


def _ddim(original: Any) -> DiscreteScheduler:
    known = inspect.signature(DDIMScheduler).parameters
    config = {key: value for key, value in original.config.items() if key in known and not key.startswith("beta_")}
    fixed = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"}
    scheduler = cast(DiscreteScheduler, DDIMScheduler(**{**config, **fixed}))
    scheduler.alphas_cumprod = original.alphas_cumprod.clone()  # some schedulers bend them after their betas
    return scheduler


def _own_reading(pipe: StockPipeline) -> Reading:
    scheduler, name = pipe.scheduler, type(pipe).__name__
    try:
        reading = reading_of(scheduler)
    except ValueError as error:
        raise UserError(f"the scheduler of {name} cannot be read: {error}") from error
    if isinstance(reading.process, Discrete):
        _check_schedule(name, reading, reading.process.alphas_cumprod)
    return reading


def _check_schedule(name: str, reading: Reading, powers: Tensor) -> None:
    """Checks that the noise grows with every step, and that epsilon determines the image even at the last."""
    last = float(powers[-1])
    if reading.row is ROWS["eps"] and last <= PURE_NOISE:
        raise UserError(
            f"the scheduler of {name} predicts epsilon, but its noisiest step is pure noise (alphas_cumprod ends at "
            f"{last:.2g}), where epsilon says nothing of the image. In scheduler/scheduler_config.json set "
            "prediction_type to v_prediction if the network was trained so; if not, set rescale_betas_zero_snr to "
            "false, or where the betas themselves end so low, write them out as trained_betas without the last few"
        )
    if not (powers.diff() < 0).all():
        raise UserError(
            f"the noise of {name}'s scheduler does not grow with every step: alphas_cumprod must fall, and ends at "
            f"{float(powers[-2]):.2g}, {last:.2g}. Some schedulers put the latter for 0 under rescale_betas_zero_snr: "
            "save the pipeline with DDIMScheduler and the same settings, which ends at 0 itself"
        )


def view(pipe: StockPipeline, step: Step) -> Step:
    """The step as the network sees it; only TrigFlow loops show their scheduler something else."""
    if isinstance(from_scheduler(pipe.scheduler).process, Trig):
        return trigflow.as_flow(step, sigma_data=pipe.scheduler.config.sigma_data)
    return step
