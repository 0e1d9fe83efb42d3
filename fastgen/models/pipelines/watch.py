"""Running a stock pipeline while its denoiser and its scheduler are watched.

`record` runs the pipeline as it is. `rehearse` runs everything but the two: the denoiser answers with zeros and the
scheduler does not move, so that what the pipeline *tells* them costs no more than its text encoders.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor

from ..denoiser import output_of
from .arguments import parameters
from .components import denoisers_of, network_of, rest, woken
from .stock_pipeline import StockPipeline

PLUMBING = ("return_dict",)


@dataclass(frozen=True)
class Call:
    """One call of the denoiser: its arguments by name, without those left out, and what it returned."""

    arguments: dict[str, Any]
    output: Any


@dataclass(frozen=True)
class Step:
    """One step of the scheduler, [B, ...] each, and the denoiser's calls since the step before.

    Args:
        calls: one, or two where guidance calls twice.
        model_output, timestep, sample: what `scheduler.step` was given.
        stepped: what it returned.
    """

    calls: tuple[Call, ...]
    model_output: Tensor
    timestep: float
    sample: Tensor
    stepped: Tensor


def rehearse(pipe: StockPipeline, call: Mapping[str, Any], *, steps: int, rows: int) -> list[Step]:
    """What a stock call tells its denoiser and scheduler, with neither of them run; values of samples mean nothing."""

    def still(_step: Callable[..., Any], told: inspect.BoundArguments) -> Any:
        return Answer([told.arguments["sample"]] * 2)

    return record(pipe, call, steps=steps, rows=rows, answer=silent(pipe), step=still)


def silent(pipe: StockPipeline) -> Callable[[inspect.BoundArguments], Any]:
    """What a denoiser that is not run answers to the arguments of a call: zeros in the form of its output."""
    config = network_of(pipe).config

    def zeros(told: inspect.BoundArguments) -> Any:
        sample = next(iter(told.arguments.values()))
        if isinstance(sample, list):
            return Answer([[torch.zeros_like(x) for x in sample]])
        wide = sample.shape[1] == config.get("in_channels") and config.get("out_channels")
        shape = (len(sample), wide, *sample.shape[2:]) if wide else sample.shape
        return Answer([sample.new_zeros(shape)])

    return zeros


class Answer(tuple):  # type: ignore[type-arg]
    """A tuple that also has the names under which networks and schedulers give their results."""

    sample = property(lambda self: self[0])
    prev_sample = property(lambda self: self[0])
    pred_original_sample = property(lambda self: self[-1])


def record(
    pipe: StockPipeline,
    call: Mapping[str, Any],
    *,
    steps: int,
    rows: int,
    answer: Callable[[inspect.BoundArguments], Any] | None = None,
    step: Callable[[Callable[..., Any], inspect.BoundArguments], Any] | None = None,
) -> list[Step]:
    """What happens in a stock call; the global random streams are left as they were.

    The text encoders leave the device when the denoiser is first run, and are afterwards where they were before.

    Args:
        pipe, call, steps, rows: the call of so many steps for so many samples.
        answer: says what the denoiser returns in its place, given its arguments.
        step: does what the scheduler's step does in its place, given that and its arguments.
    """
    scheduler = pipe.scheduler
    stock_step = scheduler.step
    act = step or (lambda stock, told: stock(*told.args, **told.kwargs))
    signature = inspect.signature(stock_step)
    calls: list[Call] = []
    seen: list[Step] = []

    @wraps(stock_step)
    def watched_step(*args: Any, **kwargs: Any) -> Any:
        told = signature.bind(*args, **kwargs)
        given, before = (told.arguments[name].clone() for name in ("model_output", "sample"))
        stepped = act(stock_step, told)
        moved = stepped[0] if isinstance(stepped, tuple) else stepped.prev_sample
        seen.append(Step(tuple(calls), given, first_value(told.arguments["timestep"]), before, moved.clone()))
        calls.clear()
        return stepped

    with ExitStack() as within:
        for net in denoisers_of(pipe).values():
            ours = answer or partial(_run, pipe, net.forward)
            within.enter_context(replaced(net, "forward", _listening(net.forward, calls, ours)))
        within.enter_context(replaced(scheduler, "step", watched_step))
        within.enter_context(undisturbed(pipe))
        within.enter_context(woken(pipe))
        torch.manual_seed(0x5EED)
        pipe(**_short(pipe, call, steps=steps, rows=rows))
    return seen


def _run(pipe: StockPipeline, forward: Callable[..., Any], told: inspect.BoundArguments) -> Any:
    """The denoiser's own answer, with the text encoders off its device."""
    rest(pipe)
    return forward(*told.args, **told.kwargs)


def _listening(
    forward: Callable[..., Any], calls: list[Call], answer: Callable[[inspect.BoundArguments], Any]
) -> Callable[..., Any]:
    """The answer in the place of the forward, with its calls noted."""
    signature = inspect.signature(forward)

    @wraps(forward)  # pipelines look into signatures, e.g. for `generator`
    def listened(*args: Any, **kwargs: Any) -> Any:
        told = signature.bind(*args, **kwargs)
        raw = answer(told)
        given = {name: value for name, value in told.arguments.items() if value is not None and name not in PLUMBING}
        calls.append(Call(given, output_of(raw)))
        return raw

    return listened


def _short(pipe: StockPipeline, call: Mapping[str, Any], *, steps: int, rows: int) -> dict[str, Any]:
    takes = parameters(pipe)
    short: dict[str, Any] = {
        "num_inference_steps": steps,
        "output_type": "latent" if "vae" in pipe.components else "pt",
    }
    if "batch_size" in takes:
        short["batch_size"] = rows
    if "generator" in takes:
        short["generator"] = torch.Generator().manual_seed(0)
    return {**unshared(call), **short}


def unshared(call: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with lists of their own, because some pipelines change the caller's list of prompts."""
    return {name: list(value) if isinstance(value, list) else value for name, value in call.items()}


def first_value(timestep: Any) -> float:
    """The time of the first sample in a number or tensor of times."""
    return float(torch.as_tensor(timestep).flatten()[0])


@contextmanager
def replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within, the instance has another method; afterwards its class's own."""
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def undisturbed(pipe: StockPipeline) -> Iterator[None]:
    """Within, the pipeline runs without graph and progress bar; the random streams are afterwards as they were."""
    bar = getattr(pipe, "_progress_bar_config", {})
    devices = [pipe.device] if pipe.device.type == "cuda" else []
    pipe.set_progress_bar_config(disable=True)
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        pipe.set_progress_bar_config(**bar)
