"""What a stock pipeline's call is told besides prompts, labels and seeds: as a student's notes say, or as asked."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import UserError
from ..models.pipelines.arguments import call_arguments, free_count, guidance_argument, parameters, size_arguments
from ..models.pipelines.notes import Notes
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.watch import record

SAME = 1e-6  # of the largest value: what two runs of one call may differ by
Warn = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a user asks for; None leaves a choice to the student's notes, then to the pipeline.

    Attributes:
        guidance: w of uncond + w (cond - uncond), 1 = none.
        negative_prompt: what guidance leads away from.
        height, width: size in pixels.
        frames: number of frames of a video.

    Raises:
        UserError: a count below 1, or guidance that is not finite.
    """

    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "height", "width", "frames"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise UserError(f"{name} is {count}: give at least 1")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise UserError(f"guidance is {self.guidance}: give a finite number, 1 for none")


@dataclass(frozen=True)
class Settled:
    """What one pipeline is really told: choices without an effect on it are left out.

    Attributes:
        steps, guidance: None is the pipeline's own default.
        arguments: arguments of its call under its own names: size and guidance.
    """

    steps: int | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


def settle(
    pipe: StockPipeline,
    notes: Notes | None,
    asked: Asked,
    *,
    example: Mapping[str, Any],
    warn: Warn,
    beside: Mapping[str, Any] | None = None,
) -> Settled:
    """The call of a pipeline, a student's as its notes say where nothing else is asked for.

    Args:
        example: the call's own arguments for one sample: a prompt, a label.
        warn: called with what a student was not trained for, and with what changes nothing.
        beside: the size of another pipeline's samples, which these are to stand beside, as far as this call takes it.

    Raises:
        UserError: something that the pipeline's call does not take.
    """
    noted = call_arguments(pipe, notes) if notes else {}
    size = size_arguments(pipe, height=asked.height, width=asked.width, frames=asked.frames)
    alike = {name: value for name, value in (beside or {}).items() if name in parameters(pipe)}
    call, guidance, negative = {**noted, **alike, **size}, asked.guidance, asked.negative_prompt
    _refuse_half_a_size(pipe, call)
    scale = {} if guidance is None else _changed(pipe, call, guidance_argument(pipe, guidance))
    if scale and without_effect(pipe, {**example, **call}, {**scale, **_leading_away(scale, negative)}):
        warn(f"guidance {guidance:g} changes nothing, and is not used: this pipeline's call guides nothing by it.")
        scale, guidance = {}, None
    arguments = {**call, **scale}
    plain, away = _leading_away(arguments, None), _leading_away(arguments, negative)
    if away != plain and without_effect(pipe, {**example, **arguments, **plain}, away):
        warn("the negative prompt changes nothing, and is not used: nothing is guided here.")
        negative = None
    if notes:
        _warn_of_untrained(pipe, noted, {**size, **scale}, warn)
    return Settled(
        steps=notes.steps[0] if notes and asked.steps is None else asked.steps,
        guidance=notes.guidance if notes and guidance is None else guidance,
        negative_prompt=negative,
        arguments=arguments,
    )


def steps_in_words(steps: int) -> str:
    """A step count as titles have it: "1 step", "4 steps"."""
    return f"{steps} step{'s' * (steps > 1)}"


def warn_of_steps(notes: Notes | None, steps: int | None, warn: Warn) -> None:
    """Warns of a step count that a student was not trained for."""
    if notes and steps and steps not in notes.steps:
        warn(
            f"{steps} steps were asked for, but this student was trained for {', '.join(map(str, notes.steps))}; "
            "images at other step counts are usually worse."
        )


def without_effect(pipe: StockPipeline, call: Mapping[str, Any], option: Mapping[str, Any]) -> bool:
    """Whether a call steps its scheduler with the same output of the network when it is told `option` as well.

    One step of one sample is drawn with it and without; a pipeline that cannot be watched so is not judged.
    """
    try:
        plain, changed = (_first_output(pipe, {**free_count(pipe), **call, **more}) for more in ({}, option))
    except Exception:  # the call itself will say what is wrong with it
        return False
    return plain.shape == changed.shape and bool((changed - plain).abs().max() <= SAME * plain.abs().max())


def _first_output(pipe: StockPipeline, call: Mapping[str, Any]) -> Tensor:
    return record(pipe, call, steps=1, rows=1)[0].model_output


def _changed(pipe: StockPipeline, call: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """What of `wanted` the call would not be told anyway."""
    return {name: value for name, value in wanted.items() if _value(pipe, call, name) != value}


def _value(pipe: StockPipeline, call: Mapping[str, Any], name: str) -> Any:
    return call[name] if name in call else parameters(pipe)[name].default


def _refuse_half_a_size(pipe: StockPipeline, call: Mapping[str, Any]) -> None:
    """Stable Diffusion and its like take their default size where they are told one side alone."""
    for side, other in (("height", "width"), ("width", "height")):
        if call.get(side) and _value(pipe, call, other) is None:
            raise UserError(
                f"{side} {call[side]} was asked for without a {other}, and {type(pipe).__name__} has no default of its "
                f"own for that: give --{other} as well"
            )


def _leading_away(call: Mapping[str, Any], negative: str | None) -> dict[str, list[str]]:
    """The negative prompt of one sample; pipelines of `true_cfg_scale` do not guide without one."""
    if negative is None and call.get("true_cfg_scale", 1.0) <= 1:
        return {}
    return {"negative_prompt": [negative or ""]}


def _warn_of_untrained(pipe: StockPipeline, noted: Mapping[str, Any], asked: Mapping[str, Any], warn: Warn) -> None:
    for name, value in asked.items():
        trained = _value(pipe, noted, name)
        if trained is not None and trained != value:
            warn(f"{name} {value:g} was asked for, but this student was trained for {trained:g}: expect worse images.")
