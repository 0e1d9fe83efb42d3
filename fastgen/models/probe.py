"""Watching a stock pipeline call its denoiser, instead of knowing each family by heart.

A short run of the pipeline's own call, with a recorder on the denoiser and on `scheduler.step`, shows the names of
the arguments, the map from scheduler time to the network's timestep, the sign and slice of the output and the form
of a sample. A self-test then holds what was read against the recording.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from ..errors import UserError
from ..process import Discrete, Reading, from_scheduler
from .arguments import guidance_argument, parameters
from .conditioning import Conditioning
from .denoiser import CallForm, NetworkDenoiser

TOLERANCE = 1e-4
_TIMES = ("timestep", "timesteps", "t")
_PLUMBING = ("return_dict",)


@dataclass(frozen=True)
class Seen:
    """One call of the denoiser and the scheduler step that followed it."""

    arguments: dict[str, Any]
    output: Tensor
    model_output: Tensor
    timestep: float
    sample: Tensor


@dataclass(frozen=True)
class Probed:
    """What a probe found: how the denoiser is called, and the shape of one sample."""

    reading: Reading
    form: CallForm
    shape: tuple[int, ...]


def denoiser_name(pipe: DiffusionPipeline) -> str:
    """The component that denoises."""
    for name in ("transformer", "unet"):
        if isinstance(pipe.components.get(name), nn.Module):
            return name
    raise UserError(
        f"{type(pipe).__name__} has neither a `unet` nor a `transformer`, so there is nothing to distil; its parts "
        f"are {', '.join(pipe.components)}"
    )


def probe(pipe: DiffusionPipeline, conditions: Mapping[str, Any]) -> Probed:
    """Runs the pipeline for three steps and reads its denoiser.

    Args:
        pipe: a loaded pipeline; left as it was.
        conditions: the call's own arguments for two samples, e.g. `prompt` or `class_labels`.

    Raises:
        UserError: a check of the self-test fails; it names the pipeline, the check and the measured difference.
    """
    reading, name = _reading(pipe), type(pipe).__name__
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # TF32 alone differs by more than the tolerance
        with unit_scaled(pipe):
            seen = _record(pipe, conditions)
        if len({step.timestep for step in seen}) < 2:
            raise _failure(name, "the scheduler steps through several times", f"{len(seen)} steps were seen of 3")
        form = _form(name, reading, seen)
        _self_test(name, NetworkDenoiser(getattr(pipe, denoiser_name(pipe)), reading, form), seen)
    return Probed(reading, form, tuple(seen[0].sample.shape[1:]))


def capture(pipe: DiffusionPipeline, form: CallForm, conditions: Mapping[str, Any], *, rows: int) -> Conditioning:
    """What the pipeline tells its denoiser under those conditions, at the cost of the text encoders only.

    The pipeline is stopped at its first denoiser call. At least two rows are asked for, so that what is batched
    can be told from what is shared.
    """
    assert rows >= 2, "one row cannot tell a batch axis from another of length one"
    net = getattr(pipe, denoiser_name(pipe))
    signature = inspect.signature(net.forward)
    told: dict[str, Any] = {}

    @wraps(net.forward)
    def stop(*args: Any, **kwargs: Any) -> None:
        told.update(signature.bind(*args, **kwargs).arguments)
        raise _Captured

    with unit_scaled(pipe), _replaced(net, "forward", stop), _quiet(pipe), torch.no_grad():
        try:
            pipe(**_short_call(pipe, conditions, steps=1, rows=rows))
        except _Captured:
            pass
        finally:
            pipe.maybe_free_model_hooks()
    given = {k: v for k, v in told.items() if v is not None and k not in (form.sample, form.timestep, *_PLUMBING)}
    batched = {k: v for k, v in given.items() if _is_batched(v, rows)}
    return Conditioning(rows, batched, {k: v for k, v in given.items() if k not in batched})


def emitted(pipe: DiffusionPipeline, conditions: Mapping[str, Any], *, steps: int) -> list[float]:
    """The scheduler timesteps that a stock call with `num_inference_steps=steps` really stops at."""
    return [step.timestep for step in _record(pipe, conditions, steps=steps)]


@contextmanager
def unit_scaled(pipe: DiffusionPipeline) -> Iterator[None]:
    """Within, a discrete process is run by DDIM: schedulers like Euler keep x_t / alpha, DDIM keeps x_t."""
    original = pipe.scheduler
    if isinstance(from_scheduler(original).process, Discrete):
        known = inspect.signature(DDIMScheduler).parameters
        config = {key: value for key, value in original.config.items() if key in known}
        pipe.scheduler = DDIMScheduler(**{**config, "clip_sample": False, "thresholding": False})
    try:
        yield
    finally:
        pipe.scheduler = original


class _Captured(Exception):
    """Ends a pipeline's call once its conditioning is known."""


def _reading(pipe: DiffusionPipeline) -> Reading:
    try:
        return from_scheduler(pipe.scheduler)
    except ValueError as error:
        raise UserError(f"the scheduler of {type(pipe).__name__} cannot be read: {error}") from error


@contextmanager
def _replaced(owner: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within, the instance has another method; afterwards its class's own."""
    setattr(owner, name, function)
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def _quiet(pipe: DiffusionPipeline) -> Iterator[None]:
    """Within, the pipeline shows no progress bar."""
    original = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**original)


def _short_call(pipe: DiffusionPipeline, conditions: Mapping[str, Any], *, steps: int, rows: int) -> dict[str, Any]:
    takes = parameters(pipe)
    call = {**conditions, **guidance_argument(pipe, 1.0), "num_inference_steps": steps}
    call["output_type"] = "latent" if "vae" in pipe.components else "pt"
    if "batch_size" in takes:
        call["batch_size"] = rows
    call["generator"] = torch.Generator().manual_seed(0)
    return call


def _record(pipe: DiffusionPipeline, conditions: Mapping[str, Any], *, steps: int = 3) -> list[Seen]:
    net, scheduler = getattr(pipe, denoiser_name(pipe)), pipe.scheduler
    forward, step, signature = net.forward, scheduler.step, inspect.signature(net.forward)
    calls: list[tuple[dict[str, Any], Tensor]] = []
    seen: list[Seen] = []

    @wraps(forward)  # pipelines look into signatures, e.g. for `generator`
    def recording_forward(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        raw = output[0] if isinstance(output, tuple) else output.sample
        calls.append((dict(signature.bind(*args, **kwargs).arguments), raw))
        return output

    @wraps(step)
    def recording_step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not calls:
            raise _failure(type(pipe).__name__, "the denoiser is called before the scheduler steps", "it was not")
        arguments, output = calls[-1]
        seen.append(Seen(arguments, output, model_output.clone(), float(timestep), sample.clone()))
        return step(model_output, timestep, sample, *args, **kwargs)

    rows = len(next(iter(conditions.values()), [0, 0]))
    watched = _replaced(net, "forward", recording_forward), _replaced(scheduler, "step", recording_step)
    with watched[0], watched[1], _quiet(pipe), torch.no_grad():
        pipe(**_short_call(pipe, conditions, steps=steps, rows=rows))
    return seen


def _form(name: str, reading: Reading, seen: list[Seen]) -> CallForm:
    first, *_, last = seen
    sample = _sample_argument(name, reading, first)
    timestep = next((k for k in _TIMES if k in first.arguments), None)
    if timestep is None:
        raise _failure(name, "the denoiser takes a time", f"its arguments are {', '.join(first.arguments)}")
    said = [float(torch.as_tensor(step.arguments[timestep]).flatten()[0]) for step in seen]
    asked = [step.timestep for step in seen]
    slope = (said[-1] - said[0]) / (asked[-1] - asked[0])
    offset = said[0] - slope * asked[0]
    worst = max(abs(slope * u + offset - v) for u, v in zip(asked, said, strict=True))
    if worst > TOLERANCE * max(1.0, *map(abs, said)):
        raise _failure(name, "the network's timestep is affine in the scheduler's", f"off by {worst:.2g}")
    channels = first.model_output.shape[1]
    sign = _sign(name, last, channels)
    sliced = channels if channels != first.output.shape[1] else None
    return CallForm(sample, timestep, slope=slope, offset=offset, sign=sign, channels=sliced)


def _sample_argument(name: str, reading: Reading, seen: Seen) -> str:
    t = reading.time(torch.tensor([seen.timestep], dtype=torch.float64))
    expected = seen.sample * float(reading.input_scale(t))
    gaps = {
        key: float((value.float() - expected.float()).abs().max())
        for key, value in seen.arguments.items()
        if isinstance(value, Tensor) and value.shape == expected.shape
    }
    best = min(gaps, key=gaps.__getitem__, default=None)
    if best is None or gaps[best] > TOLERANCE * float(expected.abs().max()):
        raise _failure(name, "the denoiser is given the scheduler's sample", f"closest argument: {best}, {gaps}")
    return best


def _sign(name: str, seen: Seen, channels: int) -> float:
    gaps = {sign: float((sign * seen.output[:, :channels] - seen.model_output).abs().max()) for sign in (1.0, -1.0)}
    best = min(gaps, key=gaps.__getitem__)
    if gaps[best] > TOLERANCE * max(1.0, float(seen.model_output.abs().max())):
        raise _failure(name, "the scheduler is given the network's output up to sign", f"off by {gaps[best]:.2g}")
    return best


def _self_test(name: str, denoiser: NetworkDenoiser, seen: list[Seen]) -> None:
    """Replay, per-sample times and a gradient to x_t, on the recorded calls."""
    reading, form = denoiser.reading, denoiser.form
    times = [reading.time(torch.full((len(step.sample),), step.timestep, dtype=torch.float64)) for step in seen]
    conds = [_recorded_conditioning(step, form) for step in seen]
    with torch.no_grad():
        replays = [denoiser(s.sample, t, c).output(reading.row) for s, t, c in zip(seen, times, conds, strict=True)]
    for step, replay in zip(seen, replays, strict=True):
        _compare(name, "replay of the recorded call", replay, step.model_output)

    x, t = torch.cat([s.sample[:1] for s in seen]), torch.cat([u[:1] for u in times])
    rows = Conditioning.cat([cond.index(torch.tensor([0])) for cond in conds])
    x = x.requires_grad_()
    mixed = denoiser(x, t, rows).output(reading.row)
    _compare(name, "a batch of different times", mixed, torch.cat([s.model_output[:1] for s in seen]))
    (gradient,) = torch.autograd.grad(mixed.square().sum(), x)
    if not gradient.isfinite().all() or not (gradient.flatten(1).abs().sum(1) > 0).all():
        raise _failure(name, "a gradient reaches the sample", "it is zero or not finite")


def _recorded_conditioning(step: Seen, form: CallForm) -> Conditioning:
    rows = len(step.sample)
    told = {k: v for k, v in step.arguments.items() if v is not None}
    for key in (form.sample, form.timestep, *_PLUMBING):
        told.pop(key, None)
    batched = {k: v for k, v in told.items() if _is_batched(v, rows)}
    return Conditioning(rows, batched, {k: v for k, v in told.items() if k not in batched})


def _is_batched(value: Any, rows: int) -> bool:
    if isinstance(value, Mapping):
        return all(_is_batched(v, rows) for v in value.values() if v is not None) and len(value) > 0
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows


def _compare(name: str, check: str, ours: Tensor, theirs: Tensor) -> None:
    gap = float((ours - theirs).detach().abs().max() / theirs.abs().max().clamp(min=1e-6))
    if not gap <= TOLERANCE:
        raise _failure(name, check, f"the relative difference is {gap:.2g}, allowed {TOLERANCE:g}")


def _failure(name: str, check: str, measured: str) -> UserError:
    return UserError(
        f"{name} cannot be used as a teacher: the self-test failed at '{check}': {measured}. Use a pipeline that "
        f"calls its denoiser once per step with its scheduler's own sample, or write a Denoiser for it"
    )
