"""Every scheduler of Diffusers in every setting that its signature knows, and the x0 that it takes an output for.

Nothing here is listed by hand: classes come from Diffusers' names, values from signatures, annotations and source.
"""

import copy
import inspect
import math
import re
import typing
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

CONTEXTS: tuple[dict[str, Any], ...] = (
    {},
    {"prediction_type": "v_prediction"},
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
)
UNUSUAL = {float: 0.5, int: 3, bool: True}  # values for settings that are None by default


@cache
def classes() -> list[type]:
    """The schedulers that Diffusers exports and that this machine has the packages for."""
    found = (getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler"))
    return [kind for kind in found if issubclass(kind, SchedulerMixin)]


def combinations() -> Iterator[tuple[type, dict[str, Any]]]:
    """Every class in every context that it knows, as it is and with every value of every setting."""
    for kind in classes():
        known = settings(kind)
        for context in CONTEXTS:
            if context.keys() <= known.keys():
                yield kind, context
                yield from (
                    (kind, {**context, name: value}) for name, value in _variations(kind) if name not in context
                )


def thinned() -> list[tuple[type, dict[str, Any]]]:
    """Every class as it is, and every value of every setting once, on classes in turn."""
    holders: dict[tuple[str, Any], list[type]] = defaultdict(list)
    for kind in classes():
        for name, value in _variations(kind):
            holders[name, value].append(kind)
    varied = [
        (kinds[i % len(kinds)], {name: value})
        for i, ((name, value), kinds) in enumerate(sorted(holders.items(), key=str))
    ]
    return [(kind, {}) for kind in classes()] + varied


def settings(kind: type) -> Mapping[str, inspect.Parameter]:
    """What a scheduler is made of, by name."""
    return inspect.signature(kind).parameters


def _variations(kind: type) -> list[tuple[str, Any]]:
    """Settings with each value that is not the default."""
    hints = typing.get_type_hints(kind.__init__)
    found = []
    for name, parameter in settings(kind).items():
        values = _values(name, parameter.default, hints.get(name))
        found += [(name, value) for value in values if value != parameter.default]
    return found


def _values(name: str, default: Any, hint: Any) -> list[Any]:
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int):
        return [default + 1] if default < 100 else []
    if isinstance(default, float):
        return [2 * default] if math.isfinite(default) else [-1.0]
    options = [option for option in typing.get_args(hint) if option in UNUSUAL]
    return [UNUSUAL[option] for option in options] if default is None and options else sorted(_words()[name])


@cache
def _words() -> dict[str, set[str]]:
    """By the name of a setting, what any scheduler's annotations, defaults or comparisons allow it to be called."""
    words: dict[str, set[str]] = defaultdict(set)
    for kind in classes():
        source = inspect.getsource(inspect.getmodule(kind))
        for name, parameter in settings(kind).items():
            hint = typing.get_type_hints(kind.__init__).get(name)
            for option in (hint, *typing.get_args(hint)):
                words[name] |= set(typing.get_args(option)) if typing.get_origin(option) is typing.Literal else set()
            if isinstance(parameter.default, str):
                words[name].add(parameter.default)
            for compared in re.findall(rf"config\.{name}\s*(?:==|(?:not )?in)\s*(\[[^\]]*\]|\"\w+\")", source):
                words[name] |= set(re.findall(r"\"([\w+-]+)\"", compared))
    return words


@dataclass(frozen=True)
class Stop:
    """One step of a stock loop.

    Args:
        scheduler: a copy from before it.
        told: the arguments of the network by name.
        output: what the network returned.
        given: the arguments of the scheduler's step by name.
        after: the sample that it returned.
        last: whether it ends the loop.
    """

    scheduler: Any
    told: dict[str, Any]
    output: Tensor
    given: dict[str, Any]
    after: Tensor
    last: bool

    @property
    def sigma(self) -> float | None:
        """The level of a scheduler that tells times between its trained ones as whole numbers."""
        timesteps, sigmas = self.scheduler.timesteps, getattr(self.scheduler, "sigmas", None)
        if sigmas is None or timesteps.is_floating_point():
            return None
        return float(sigmas[_started(self.scheduler, self.given["timestep"]).step_index])

    @property
    def x0(self) -> Tensor | None:
        """What the scheduler takes the clean sample to be, before any guard against large values; None if unknown."""
        said = _stated(self)
        if said is not None:
            return said
        if hasattr(self.scheduler, "convert_model_output"):
            return _converted(self)
        ends_clean = float(getattr(self.scheduler, "sigmas", [1.0])[-1]) == 0
        if self.last and (ends_clean or not hasattr(self.scheduler, "alphas_cumprod")):
            return self.after
        return _inverted(self) if hasattr(self.scheduler, "alphas_cumprod") else None


def unguarded(scheduler: Any) -> Any:
    """The same without guards against large values, which change samples and not what an output means."""
    guards = ("clip_sample", "thresholding", "clip_denoised")
    off = {name: False for name in guards if name in scheduler.config}
    made = copy.deepcopy(scheduler)
    made.register_to_config(**off)
    return made


def stops(pipe: Any, network: Any, call: dict[str, Any]) -> list[Stop]:
    """What happens in the pipeline's own call."""
    seen: list[Stop] = []
    calls: list[tuple[dict[str, Any], Tensor]] = []
    forward, step, scheduler = network.forward, pipe.scheduler.step, pipe.scheduler

    def listened(*args: Any, **kwargs: Any) -> Any:
        said = forward(*args, **kwargs)
        told = inspect.signature(forward).bind(*args, **kwargs).arguments
        calls.append((dict(told), said[0] if isinstance(said, tuple) else said.sample))
        return said

    def stepped(*args: Any, **kwargs: Any) -> Any:
        given, before = inspect.signature(step).bind(*args, **kwargs).arguments, _bare(scheduler)
        said = step(*args, **kwargs)
        after = said[0] if isinstance(said, tuple) else said.prev_sample
        seen.append(Stop(before, *calls[-1], dict(given), after, len(seen) + 1 == len(scheduler.timesteps)))
        return said

    network.forward, scheduler.step = listened, stepped
    try:
        with torch.no_grad():
            torch.manual_seed(0)
            pipe(**call)
    finally:
        del network.forward, scheduler.step
    return seen


def _bare(scheduler: Any) -> Any:
    """A copy without what was hung on it."""
    hung = scheduler.__dict__.pop("step")
    try:
        return copy.deepcopy(scheduler)
    finally:
        scheduler.step = hung


def _started(scheduler: Any, timestep: Any) -> Any:
    made = copy.deepcopy(scheduler)
    if made.step_index is None:
        made._init_step_index(timestep)
    return made


def _stated(stop: Stop) -> Tensor | None:
    """By name in what the step returns."""
    given = {**stop.given, "return_dict": True}
    said = copy.deepcopy(stop.scheduler).step(**given)
    return next((said[key] for key in ("pred_original_sample", "denoised") if said.get(key) is not None), None)


def _converted(stop: Stop) -> Tensor:
    """As multistep solvers convert outputs, into x0 or into eps, in float64: near pure noise less loses x0."""
    scheduler = _started(stop.scheduler, stop.given["timestep"])
    scheduler.sigmas = scheduler.sigmas.double()
    sample = stop.given["sample"].double()
    said = scheduler.convert_model_output(stop.given["model_output"].double(), sample=sample)
    algorithm = scheduler.config.get("algorithm_type") or ""
    if scheduler.config.get("predict_x0", algorithm.endswith("++") or algorithm == "data_prediction"):
        return said
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
    return (sample - sigma * said) / alpha


def _inverted(stop: Stop) -> Tensor:
    """By the definition of the prediction type (Salimans & Ho 2022), where a scheduler only mixes samples."""
    power = stop.scheduler.alphas_cumprod[int(stop.given["timestep"])]
    alpha, sigma = power.sqrt(), (1 - power).sqrt()
    sample, output = stop.given["sample"], stop.given["model_output"]
    kind = stop.scheduler.config.prediction_type
    if kind == "sample":
        return output
    return (sample - sigma * output) / alpha if kind == "epsilon" else alpha * sample - sigma * output
