"""Reading a Diffusers scheduler: which process it speaks, which row, and what it calls a timestep."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .families import EDM, Discrete, Flow, Trig
from .prediction import ROWS, Row, consistency_row, edm_row
from .process import Process

PREDICTION_ROWS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class Reading:
    """A scheduler in our terms.

    Args:
        process: what x_t means.
        row: what the network's output means.
        timestep: process time [B] -> the value the scheduler lists in `timesteps`.
        time: scheduler timestep [B] -> process time, the inverse of `timestep`.
        input_scale: process time [B] -> the factor on x_t in `scale_model_input`.
    """

    process: Process
    row: Row
    timestep: Callable[[Tensor], Tensor]
    time: Callable[[Tensor], Tensor]
    input_scale: Callable[[Tensor], Tensor] = torch.ones_like


def from_scheduler(scheduler: Any) -> Reading:
    """The reading of a Diffusers scheduler object.

    Schedulers that keep x_t / alpha (Euler, Heun, LMS) are read as the discrete process they were made from: swap
    in a unit-scale one (DDIM, LCM) before running the network on x_t.

    Raises:
        ValueError: a scheduler of none of the four families, or a prediction type that its family does not have.
    """
    config, name = scheduler.config, type(scheduler).__name__
    if name.startswith("FlowM") or config.get("use_flow_sigmas"):
        steps = config.num_train_timesteps
        return Reading(Flow(), ROWS["flow"], lambda t: steps * t.double(), lambda u: u.double() / steps)
    if name == "SCMScheduler":
        trig = Trig()
        return Reading(trig, ROWS["flow"], trig.clock, trig.from_clock)
    row: Row
    if name == "CMStochasticIterativeScheduler":
        row = partial(consistency_row, sigma_data=config.sigma_data, sigma_min=config.sigma_min)
        return _karras(config, row, factor=250.0)
    if name.startswith("EDM"):
        sign = _named({"epsilon": 1.0, "v_prediction": -1.0}, scheduler)
        return _karras(config, partial(edm_row, sigma_data=config.sigma_data, sign=sign), factor=0.25)
    if hasattr(scheduler, "alphas_cumprod"):
        discrete = Discrete(scheduler.alphas_cumprod)
        row = ROWS[_named(PREDICTION_ROWS, scheduler)]
        return Reading(discrete, row, discrete.clock, discrete.from_clock)
    raise ValueError(
        f"{name} is none of the known families (discrete VP, flow matching, EDM/VE, TrigFlow); "
        "save the pipeline with one of Diffusers' DDIM, FlowMatchEulerDiscrete, EDM or SCM schedulers"
    )


def _named(meanings: Mapping[str, Any], scheduler: Any) -> Any:
    """What the scheduler's prediction type means."""
    kind = scheduler.config.get("prediction_type", "epsilon")
    if kind not in meanings:
        name = type(scheduler).__name__
        raise ValueError(f"prediction_type is {kind}, but a {name} knows {', '.join(meanings)}: set one of them")
    return meanings[kind]


def _karras(config: Any, row: Row, *, factor: float) -> Reading:
    process = EDM(sigma_min=config.sigma_min, sigma_max=config.sigma_max, rho=config.rho)
    return Reading(
        process,
        row,
        timestep=lambda t: factor * torch.log(process.sigma(t) + 1e-44),
        time=lambda u: process.from_clock(torch.exp(u.double() / factor)),
        input_scale=lambda t: torch.rsqrt(process.sigma(t) ** 2 + config.sigma_data**2),
    )
