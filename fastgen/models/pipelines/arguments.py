"""What the call of a stock pipeline takes: its kind of conditioning, its classes, its guidance argument."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from ...errors import UserError
from .notes import Notes
from .stock_pipeline import StockPipeline

Kind = Literal["none", "label", "prompt"]
T = TypeVar("T")

_TAKES: dict[Kind, str] = {
    "none": "takes neither class labels nor prompts",
    "label": "is conditioned on class labels and takes no prompts",
    "prompt": "is conditioned on prompts and takes no class labels",
}
# These pipelines compute cond + g (cond - uncond) and call g the guidance scale: g = w - 1.
_EXCESS_GUIDANCE = ("ZImage", "Krea2")

FRAMES = ("num_frames", "frames", "video_length")  # what pipelines call the number of frames


def parameters(pipe: StockPipeline) -> Mapping[str, inspect.Parameter]:
    """The arguments of the pipeline's call by name."""
    declared = inspect.signature(type(pipe).__call__).parameters
    return {name: parameter for name, parameter in declared.items() if name != "self"}


def conditioning_kind(pipe: StockPipeline) -> Kind:
    """What an image of this pipeline is asked for by."""
    if "prompt" in parameters(pipe):
        return "prompt"
    return "label" if _label_count(pipe) else "none"


def real_classes(pipe: StockPipeline, notes: Notes | None) -> range:
    """The class labels that may be drawn, without the null label; empty without class labels.

    A student's notes decide. Without notes, a DiT has all its embeddings (its null label lies one above) and
    a UNet with K embeddings has K - 1 where K ends in 1 (11, 101, 1001: a null label was added), else K.
    """
    count = _label_count(pipe)
    if count and notes and notes.num_classes:
        return range(notes.num_classes)
    has_null = "unet" in pipe.components and count > 1 and count % 10 == 1
    return range(count - 1 if has_null else count)


def noted_classes(path: str, num_classes: int | None, null_label: int | None) -> tuple[int | None, int | None]:
    """Classes and null label of a teacher: what is not given is filled from its folder's `fastgen.json`, if any."""
    notes = Notes.read(Path(path)) if Path(path).is_dir() else None
    if notes is None:
        return num_classes, null_label
    return num_classes or notes.num_classes, notes.null_label if null_label is None else null_label


def null_label_above(pipe: StockPipeline, classes: range) -> int | None:
    """The label that means "no class": the embedding just above the real classes, if the network has one."""
    known = _denoiser_config(pipe).get("num_class_embeds") or 0
    return classes.stop if known > classes.stop > 0 else None


def check_embedded(pipe: StockPipeline, classes: range, null_label: int | None) -> None:
    """Raise UserError where classes or null label reach beyond the labels that the network has embeddings of."""
    config = _denoiser_config(pipe)
    dit = config.get("num_embeds_ada_norm")  # DiT's null label lies above its classes
    known, highest = config.get("num_class_embeds") or (dit + 1 if dit else 0), max(classes.stop - 1, null_label or 0)
    if 0 < known <= highest:
        raise UserError(
            f"teacher.num_classes and teacher.null_label reach label {highest}, but the {type(pipe).__name__} has "
            f"embeddings for 0 to {known - 1}: correct these two settings"
        )


def in_turn(values: Sequence[T], numbers: Iterable[int]) -> list[T]:
    """What the samples of these numbers are asked for: labels or prompts in turn, as balanced as can be."""
    return [values[number % len(values)] for number in numbers]


def check_labels(labels: Sequence[int], classes: range) -> None:
    """Raise UserError for the first label outside `classes`."""
    for label in labels:
        if label not in classes:
            raise UserError(
                f"class label {label} is out of range: this pipeline has the classes "
                f"{classes.start} to {classes.stop - 1}"
            )


def default_steps(pipe: StockPipeline) -> int | None:
    """The sampler steps of a call that names none."""
    parameter = parameters(pipe).get("num_inference_steps")
    return parameter.default if parameter else None


def free_count(pipe: StockPipeline) -> dict[str, None]:
    """The argument that lets a pipeline whose defaults fix the number of steps run any number (SANA-Sprint)."""
    return {"intermediate_timesteps": None} if "intermediate_timesteps" in parameters(pipe) else {}


def conditions(
    pipe: StockPipeline, *, labels: Sequence[int] | None, prompts: Sequence[str] | None
) -> dict[str, list[Any]]:
    """The call's per-image arguments for labels or prompts.

    Raises:
        UserError: labels or prompts that the pipeline does not take, or lacks; a label without an embedding.
    """
    kind = conditioning_kind(pipe)
    name = type(pipe).__name__
    if labels is not None and kind != "label":
        raise UserError(f"class labels were given, but {name} {_TAKES[kind]}. Leave the labels out.")
    if prompts is not None and kind != "prompt":
        raise UserError(f"a prompt was given, but {name} {_TAKES[kind]}. Leave the prompts out.")
    if kind == "prompt":
        if prompts is None:
            raise UserError(f"{name} is conditioned on prompts and got none. Give --prompt or --prompts.")
        return {"prompt": list(prompts)}
    if kind == "label":
        if labels is None:
            raise UserError(f"{name} is conditioned on class labels and got none. Give --labels.")
        check_labels(labels, range(_label_count(pipe)))
        return {"class_labels": list(labels)}
    return {}


def guidance_argument(pipe: StockPipeline, w: float) -> dict[str, float]:
    """The pipeline's own argument for uncond + w (cond - uncond), none where w = 1 needs none.

    A network with embedded guidance (Flux dev) gets w as that embedding.

    Raises:
        UserError: w is not 1 and the pipeline has no guidance.
    """
    takes = parameters(pipe)
    embedded = _denoiser_config(pipe).get("guidance_embeds", False)
    if "true_cfg_scale" in takes and not embedded:
        return {"true_cfg_scale": w}
    if "guidance_scale" in takes:
        excess = type(pipe).__name__.startswith(_EXCESS_GUIDANCE)
        return {"guidance_scale": w - 1 if excess else w}
    if w == 1:
        return {}
    raise UserError(f"guidance {w:g} was asked for, but {type(pipe).__name__} has no guidance. Leave it out.")


def classifier_free(pipe: StockPipeline, w: float) -> dict[str, float]:
    """The pipeline's own argument for calling its denoiser with and without the condition; none if it never does.

    A guidance that the network is given as an embedding (Flux dev, an LCM's UNet) is another thing and stays at its
    default.
    """
    takes, config = parameters(pipe), _denoiser_config(pipe)
    if "true_cfg_scale" in takes:
        return {"true_cfg_scale": w}
    if config.get("guidance_embeds") or config.get("time_cond_proj_dim"):
        return {}
    return guidance_argument(pipe, w) if "guidance_scale" in takes else {}


def default_guidance(pipe: StockPipeline) -> float:
    """The w of uncond + w (cond - uncond) of a call that names none, where the pipeline guides so; else 1."""
    (name, unguided), *_ = [*classifier_free(pipe, 1.0).items(), ("", 1.0)]
    parameter = parameters(pipe).get(name)
    if parameter is None or not isinstance(parameter.default, int | float):
        return 1.0
    return float(parameter.default) + 1.0 - unguided


def call_arguments(pipe: StockPipeline, notes: Notes) -> dict[str, Any]:
    """What a student's call needs besides prompt or label and steps: size, and guidance as the pipeline names it."""
    guidance = {} if notes.guidance is None else classifier_free(pipe, notes.guidance)
    return {**guidance, **notes.arguments}


def guided_call(pipe: StockPipeline, w: float, *, negative: str | None, rows: int) -> dict[str, Any]:
    """The call's own arguments for classifier-free guidance; `negative` None leaves the pipeline's default."""
    call: dict[str, Any] = classifier_free(pipe, w)
    if negative is None and "true_cfg_scale" in call:
        negative = ""  # without a negative prompt these pipelines do not guide
    if negative is not None and "negative_prompt" in parameters(pipe):
        call["negative_prompt"] = [negative] * rows
    return call


def size_arguments(pipe: StockPipeline, *, height: int | None, width: int | None, frames: int | None) -> dict[str, int]:
    """The call's own arguments for a size; None leaves the pipeline's default.

    Raises:
        UserError: the pipeline's call takes no such size.
    """
    size = {"height": height, "width": width, frames_argument(pipe) or FRAMES[0]: frames}
    given = {name: value for name, value in size.items() if value is not None}
    check_known(pipe, given)
    return given


def frames_argument(pipe: StockPipeline) -> str | None:
    """What the pipeline's call names its number of frames; None where it makes no videos."""
    return next((name for name in FRAMES if name in parameters(pipe)), None)


def check_known(pipe: StockPipeline, arguments: Mapping[str, Any]) -> None:
    """Raise UserError for the first argument that the pipeline's call does not know."""
    takes = parameters(pipe)
    for name in arguments:
        if name not in takes:
            raise UserError(
                f"{type(pipe).__name__} takes no {name}: its call knows {', '.join(takes)}. Leave {name} out."
            )


def _label_count(pipe: StockPipeline) -> int:
    """Label embeddings that `class_labels` can reach (a UNet's null label included), 0 without any."""
    if "class_labels" not in parameters(pipe):
        return 0
    config = _denoiser_config(pipe)
    return config.get("num_class_embeds") or config.get("num_embeds_ada_norm") or 0


def _denoiser_config(pipe: StockPipeline) -> dict[str, Any]:
    network = pipe.components.get("transformer") or pipe.components.get("unet")
    return dict(network.config) if network is not None else {}


def check_given(pipe: StockPipeline, kind: str, *, given: bool) -> None:
    """Raises UserError where a pipeline is conditioned on prompts or labels, its `kind`, and the data give none."""
    if kind != "none" and not given:
        raise UserError(
            f"{type(pipe).__name__} is conditioned on {kind}s and the data has none for its rows: choose a data source "
            f"with {kind}s"
        )
