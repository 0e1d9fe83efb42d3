"""Watching a stock pipeline call its denoiser, instead of knowing each family by heart.

A short run of the pipeline's own call shows the names of the arguments, the map from scheduler time to the network's
timestep, the sign and slice of the output and the form of a sample; rehearsals show which arguments have a row per
sample. The self-test (`selftest`) then holds what was read against the recording, and against the scheduler that the
pipeline came with (`own`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from ...process import Reading
from ..conditioning import Conditioning
from ..denoiser import CallForm, NetworkDenoiser
from ..layout import Layout, same
from ..precision import full_precision
from .arguments import FRAMES, classifier_free, free_count, guided_call, parameters
from .attempt import attempt
from .canonical import canonical, is_deterministic, view
from .components import network_of, rest
from .oracle import Read
from .own import hold_to_own_scheduler
from .refusal import checking, failure
from .selftest import Evidence, fitting_guidance, self_test, tolerance
from .stock_pipeline import StockPipeline
from .watch import Step, first_value, record, rehearse

_TIMES = ("timestep", "timesteps", "t")
_SIMPLE_MAPS = ((1.0, 0.0), (1e-3, 0.0), (-1.0, 1000.0), (-1e-3, 1.0))  # slope and offset
_GUIDANCE = 3.0
MOST_PIXELS, MOST_FRAMES = 256, 9  # of what is probed, where samples are larger
STEPS = 4  # divides the trained steps of discrete schedulers, whose own step back is rounded otherwise


@dataclass(frozen=True)
class Probed:
    """What a probe found: what the scheduler means, and how the denoiser is called."""

    reading: Reading
    form: CallForm


def probe(pipe: StockPipeline, alone: Mapping[str, Any], mixed: Mapping[str, Any], *, test: bool = True) -> Probed:
    """Runs the pipeline for a few steps and reads its denoiser.

    Args:
        pipe: a loaded pipeline; left as it was.
        alone: the call's own arguments for one sample, e.g. `prompt`, and for its size.
        mixed: the same for two samples that ask for different things, of different length, the first as alone.
        test: whether what was read is held against the recording; networks without weights have no values to hold.

    Raises:
        UserError: a check of the self-test fails; it names the pipeline, the check and the measured difference.
    """
    with full_precision(), checking(type(pipe).__name__, "its network answers as its call says"):
        return _probed(pipe, alone, mixed, test=test)


def small_size(pipe: StockPipeline, shape: tuple[int, ...]) -> dict[str, Any]:
    """Call arguments that keep a probe's real runs of the network small, where samples of this shape are larger."""
    if torch.Size(shape).numel() <= 4 * (MOST_PIXELS // 8) ** 2:
        return {}
    wanted: dict[str, Any] = {"height": MOST_PIXELS, "width": MOST_PIXELS, "use_resolution_binning": False}
    wanted |= dict.fromkeys(FRAMES, MOST_FRAMES)
    return {name: value for name, value in wanted.items() if name in parameters(pipe)}


def _probed(pipe: StockPipeline, alone: Mapping[str, Any], mixed: Mapping[str, Any], *, test: bool) -> Probed:
    name, plain = type(pipe).__name__, {**classifier_free(pipe, 1.0), **free_count(pipe)}
    steps = attempt(pipe, {**mixed, **plain}, lambda call: record(pipe, call, steps=STEPS, rows=2))
    with canonical(pipe) as reading:
        seen = [view(pipe, step) for step in steps]
        if len({step.timestep for step in seen}) < 2:
            raise failure(name, "the scheduler steps through several times", f"{len(seen)} steps were seen of {STEPS}")
        net = network_of(pipe)
        form = _form(name, reading, seen, tolerance(net))
        form = replace(form, layout=_layout(pipe, form, alone, mixed))
        if not test:
            return Probed(reading, form)
        denoiser = NetworkDenoiser(net, reading, form)
        told = capture(pipe, form, mixed, rows=2)
        single = capture(pipe, form, alone, rows=1)
        rest(pipe)
        self_test(name, denoiser, Evidence(seen, told, single, is_deterministic(pipe)))
        null = capture_null(pipe, form, mixed, plain=told)
        if null is not None:
            guided = record(pipe, {**mixed, **_guided(pipe, None, rows=2)}, steps=STEPS, rows=2)[0]
            cond = replace(told, null=null)
            rest(pipe)
            form = replace(form, rescaled=fitting_guidance(name, denoiser, view(pipe, guided), cond, w=_GUIDANCE))
        read = Read(reading, form, seen[0], type(pipe.scheduler).__name__, tolerance(net))
    hold_to_own_scheduler(pipe, {**alone, **plain}, read, steps=STEPS)
    return Probed(reading, form)


def capture(pipe: StockPipeline, form: CallForm, call: Mapping[str, Any], *, rows: int) -> Conditioning:
    """What the pipeline tells its denoiser of those conditions, at the cost of the text encoders only."""
    first = opening(pipe, {**call, **classifier_free(pipe, 1.0)}, rows=rows)
    return form.layout.conditioning(_without_sample(first.calls[0].arguments, form), rows)


def capture_null(
    pipe: StockPipeline,
    form: CallForm,
    call: Mapping[str, Any],
    *,
    plain: Conditioning,
    negative: str | None = None,
) -> Conditioning | None:
    """What the pipeline tells its denoiser of "nothing" beside those conditions, as it builds it itself.

    Pipelines put both halves into one call or call twice, in either order; the half that is not what an unguided
    call says (`plain`) is the null one.

    Returns:
        None for a pipeline without classifier-free guidance.
    """
    rows, guided = plain.size, _guided(pipe, negative, rows=plain.size)
    if not guided:
        return None
    first = opening(pipe, {**call, **guided}, rows=rows)
    told = [_without_sample(call.arguments, form) for call in first.calls]
    given = len(first.calls[0].arguments[form.sample])
    if len(told) == 1 and given == rows:
        return None
    if len(told) == 1 and given == 2 * rows:
        both = form.layout.conditioning(told[0], given)
        halves = [both.index(torch.arange(rows)), both.index(torch.arange(rows, given))]
    elif len(told) == 2:
        halves = [form.layout.conditioning(part, rows) for part in told]
    else:
        measured = f"{len(told)} calls, the first with {given} rows for {rows} samples"
        raise failure(type(pipe).__name__, "guidance calls the denoiser with and without the condition", measured)
    return halves[1] if same(halves[0], plain) else halves[0]


def opening(pipe: StockPipeline, call: Mapping[str, Any], *, rows: int) -> Step:
    """The first step of a rehearsed call.

    Raises:
        UserError: the pipeline's call wants more than that (an image to start from), or steps no scheduler.
    """
    asked = {**call, **free_count(pipe)}
    steps = attempt(pipe, asked, lambda told: rehearse(pipe, told, steps=STEPS, rows=rows))
    if not steps:
        raise failure(type(pipe).__name__, "its call steps its scheduler", "it did not")
    return steps[0]


def emitted(pipe: StockPipeline, call: Mapping[str, Any], *, steps: int) -> list[float]:
    """The scheduler timesteps at which a stock call of two samples with `num_inference_steps=steps` really stops."""
    return [step.timestep for step in rehearse(pipe, {**call, **classifier_free(pipe, 1.0)}, steps=steps, rows=2)]


def _guided(pipe: StockPipeline, negative: str | None, *, rows: int) -> dict[str, Any]:
    return guided_call(pipe, _GUIDANCE, negative=negative, rows=rows)


def _layout(pipe: StockPipeline, form: CallForm, alone: Mapping[str, Any], mixed: Mapping[str, Any]) -> Layout:
    def told(call: Mapping[str, Any], rows: int) -> dict[str, Any]:
        lists = {k: [v[i % len(v)] for i in range(rows)] if isinstance(v, list) else v for k, v in call.items()}
        first = opening(pipe, {**lists, **classifier_free(pipe, 1.0)}, rows=rows)
        return _without_sample(first.calls[0].arguments, form)

    both = told(mixed, 2)
    try:
        return Layout.learnt(both, told(mixed, 3)).with_masks(told(alone, 1), both)
    except ValueError as error:
        check = "an argument of its denoiser has rows for each sample or is shared by all"
        raise failure(type(pipe).__name__, check, str(error)) from error


def _form(name: str, reading: Reading, seen: list[Step], allowed: float) -> CallForm:
    first, last = seen[0], seen[-1]
    silent = sum(not step.calls for step in seen)
    if silent:
        raise failure(name, "the denoiser is called before every scheduler step", f"not in {silent} of {len(seen)}")
    sample, listed = _sample_argument(name, reading, first, allowed)
    timestep = next((k for k in _TIMES if k in first.calls[-1].arguments), None)
    if timestep is None:
        raise failure(name, "the denoiser takes a time", f"its arguments are {', '.join(first.calls[-1].arguments)}")
    shape = list(getattr(first.calls[-1].arguments[timestep], "shape", []))
    if len(shape) > 1:
        raise failure(name, "the denoiser takes one time for each sample", f"its {timestep} is of {shape}")
    basis, slope, offset = _time_map(name, reading, seen, timestep, allowed)
    output = CallForm(listed=listed).taken(last.calls[-1].output, last.sample)
    channels = last.model_output.shape[1]
    sliced = channels if channels != output.shape[1] else None
    sign = _sign(name, output[:, :channels], last.model_output, allowed)
    return CallForm(sample, timestep, basis, slope, offset, sign, sliced, listed)


def _sample_argument(name: str, reading: Reading, seen: Step, allowed: float) -> tuple[str, tuple[int, ...] | None]:
    """The name of the argument that holds the scheduled sample, and the axes more that its rows have in a list."""
    t = reading.time(torch.tensor([seen.timestep], dtype=torch.float64))
    expected = (seen.sample * float(reading.input_scale(t))).float()
    gaps: dict[str, float] = {}
    listed: dict[str, tuple[int, ...] | None] = {}
    for key, value in seen.calls[-1].arguments.items():
        rows = torch.stack(value) if _is_rows(value, expected) else value
        inserted = _inserted(rows.shape[1:], expected.shape[1:]) if isinstance(rows, Tensor) else None
        if inserted is not None and len(rows) == len(expected):
            gaps[key] = float((rows.reshape(expected.shape).float() - expected).abs().max())
            listed[key] = inserted if rows is not value else None
    best = min(gaps, key=gaps.__getitem__, default=None)
    if best is None or gaps[best] > allowed * float(expected.abs().max()):
        found = f"{best} differs by {gaps[best]:.2g}" if best else "no argument has its shape"
        raise failure(name, "the denoiser is given the scheduler's sample", found)
    return best, listed[best]


def _is_rows(value: Any, like: Tensor) -> bool:
    """Whether it is a list of one tensor per sample, all alike."""
    tensors = isinstance(value, list) and len(value) == len(like) and all(isinstance(x, Tensor) for x in value)
    return tensors and len({x.shape for x in value}) == 1


def _inserted(shape: torch.Size, plain: torch.Size) -> tuple[int, ...] | None:
    """Where `shape` has axes of length one more than `plain`; None if that is not the only difference."""
    places: list[int] = []
    for axis, length in enumerate(shape):
        if axis - len(places) < len(plain) and length == plain[axis - len(places)]:
            continue
        if length != 1:
            return None
        places.append(axis)
    return tuple(places) if len(shape) - len(places) == len(plain) else None


def _time_map(
    name: str, reading: Reading, seen: list[Step], timestep: str, allowed: float
) -> tuple[Literal["timestep", "time"], float, float]:
    """The affine map to the network's timestep, from the scheduler's or else from the process time.

    The simplest one that fits is taken: times that a pipeline rounded to half precision would bend a free fit.
    """
    said = [first_value(step.calls[-1].arguments[timestep]) for step in seen]
    listed = torch.tensor([step.timestep for step in seen], dtype=torch.float64)
    bases: dict[Literal["timestep", "time"], list[float]]
    bases = {"timestep": listed.tolist(), "time": reading.time(listed).tolist()}
    lines = [(basis, line) for line in _SIMPLE_MAPS for basis in bases]
    lines += [(basis, _through(asked, said)) for basis, asked in bases.items()]
    gaps = []
    for basis, (slope, offset) in lines:
        gaps.append(max(abs(slope * u + offset - v) for u, v in zip(bases[basis], said, strict=True)))
        if gaps[-1] <= allowed * max(map(abs, said)):
            return basis, slope, offset
    raise failure(name, "the network's timestep is affine in the scheduler's", f"off by {min(gaps):.2g}")


def _through(asked: list[float], said: list[float]) -> tuple[float, float]:
    slope = (said[-1] - said[0]) / (asked[-1] - asked[0])
    return slope, said[0] - slope * asked[0]


def _sign(name: str, output: Tensor, model_output: Tensor, allowed: float) -> float:
    gaps = {sign: float((sign * output - model_output).abs().max()) for sign in (1.0, -1.0)}
    best = min(gaps, key=gaps.__getitem__)
    if gaps[best] > allowed * max(1.0, float(model_output.abs().max())):
        raise failure(name, "the scheduler is given the network's output up to sign", f"off by {gaps[best]:.2g}")
    return best


def _without_sample(arguments: Mapping[str, Any], form: CallForm) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if name not in (form.sample, form.timestep)}
