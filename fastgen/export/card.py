"""The README.md of an export: what it is and the lines that sample from it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard

from ..models.pipelines.arguments import call_arguments, conditioning_kind, frames_argument
from ..models.pipelines.heads import CALLBACK, StepHeads
from ..models.pipelines.loading import HUB_FAILURES
from ..models.pipelines.notes import Notes
from ..models.pipelines.stacked import StackedLoRA
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.students import Students
from ..redaction import plain_markdown
from .comfyui import FILE as WORKFLOW
from .front import front_matter
from .scheduler_export import SchedulerExport
from .seeding import hands_generator_on
from .text import OWN, adapter_names, on_hub, place_of_teacher, public, quoted

HERE = "path/to/this/folder"
_LICENCE = ("license", "license_name", "license_link")


def card(pipe: StockPipeline, notes: Notes, *, subfolder: str = "", heads: StepHeads | None = None) -> str:
    """Markdown of a whole pipeline's folder: the call for every declared step count and where it stops.

    Args:
        subfolder: folder within the export, where each step count has its own.
        heads: last layers of the steps, where each has its own.
    """
    here = f"{HERE}/{subfolder}" if subfolder else HERE
    lines = [
        "from diffusers import DiffusionPipeline",
        *([] if heads is None else ["from safetensors.torch import load_file"]),
        "",
        f'pipe = DiffusionPipeline.from_pretrained("{here}")',
    ]
    if heads is None:
        return _document(pipe, notes, [*lines, _call(pipe, notes)])
    text = _document(pipe, notes, [*lines, *_taking_turns(pipe, notes, heads, here)])
    return (
        f"{text}\nOf several steps each has another weight of `{heads.layer}`, from `{heads.FILE}`, where they lie by "
        f"the number of steps. The pipeline itself has that of the first of {min(notes.steps)}; one step needs no "
        "other.\n"
    )


def lora_card(
    pipe: StockPipeline,
    notes: Notes,
    *,
    loras: Sequence[StackedLoRA],
    kohya: str | None,
    subfolder: str,
    flow: bool = False,
) -> str:
    """Markdown of a LoRA's folder: base, the LoRAs the teacher was made with, the folder's, scheduler, guidance.

    Args:
        loras: the folder's own.
        kohya: name of the file that holds them in Kohya keys, if one does.
        flow: whether a ComfyUI workflow lies beside it.
    """
    kind = type(pipe.scheduler).__name__
    below = [StackedLoRA(public(lora.place, hub=lora.hub), lora.file, lora.weight) for lora in notes.loras]
    named = dict(zip((*adapter_names(notes.loras), *OWN), (*below, *loras), strict=False))
    origin = {"variant": notes.variant, "revision": notes.revision if on_hub(notes) else None}
    which = "".join(f", {name}={quoted(value)}" for name, value in origin.items() if value)
    lines = [f"from diffusers import DiffusionPipeline, {kind}", ""]
    lines.append(f"pipe = DiffusionPipeline.from_pretrained({quoted(place_of_teacher(notes))}{which})")
    for name, lora in named.items():
        into = ", load_into_transformer_2=True" if lora.second else ""
        file = quoted(lora.file)
        lines.append(f'pipe.load_lora_weights({quoted(lora.folder)}, weight_name={file}, adapter_name="{name}"{into})')
    weights = [lora.weight for lora in named.values()]
    lines.append(f"pipe.set_adapters({json.dumps(list(named))}, {json.dumps(weights)})")
    place = f"{subfolder}/scheduler" if subfolder else "scheduler"
    lines.append(f'pipe.scheduler = {kind}.from_pretrained("{HERE}", subfolder="{place}")')
    text = _document(pipe, notes, [*lines, _call(pipe, notes)], lora=True)
    same = f"\n`{kohya}` holds the same update in the keys of ComfyUI and kohya-ss' sd-scripts.\n" if kohya else ""
    nodes = f"`{WORKFLOW}` is a ComfyUI workflow (API form) that samples with it: name your base there.\n"
    return text + same + (nodes if flow else "")


def top_card(pipe: StockPipeline, notes: Notes, schedules: Sequence[SchedulerExport]) -> str:
    """Markdown above several folders, one for each step count."""
    rows = [f"- `{schedule.folder}`: `num_inference_steps={schedule.steps[0]}`" for schedule in schedules]
    text = "No single scheduler serves all these step counts, so each has a folder that is a whole pipeline:"
    return "\n".join([*_head(pipe, notes), text, "", *rows]) + "\n"


def licence_of(teacher: str) -> dict[str, str]:
    """The licence fields of a teacher's model card, a folder's or the hub's; empty where there is none."""
    local = Path(teacher)
    source = local / "README.md" if local.is_dir() else teacher
    if local.is_dir() and not (local / "README.md").is_file():
        return {}
    try:
        data = ModelCard.load(source, ignore_metadata_errors=True).data.to_dict()
    except (*HUB_FAILURES, yaml.YAMLError):
        return {}
    return {key: str(data[key]) for key in _LICENCE if data.get(key)}


def _document(pipe: StockPipeline, notes: Notes, code: Sequence[str], *, lora: bool = False) -> str:
    lines = [*_head(pipe, notes, lora=lora), "```python", *code, "```", "", *_stops(pipe, notes)]
    if notes.null_label is not None:
        lines += ["", f"Label {notes.null_label} means no class; {notes.num_classes} real classes come before it."]
    if notes.sampler == "renoise" and max(notes.steps) > 1 and not hands_generator_on(pipe):
        lines += [
            "",
            "This pipeline draws the noise between steps from the global generator: for an image that can be drawn "
            "again call `torch.manual_seed(seed)` before it, besides `generator=`.",
        ]
    if notes.metrics:
        lines += [
            "",
            "| measured | |",
            "|---|---|",
            *(f"| {plain_markdown(name)} | {value:.4g} |" for name, value in notes.metrics.items()),
        ]
    return "\n".join(lines) + "\n"


def _head(pipe: StockPipeline, notes: Notes, *, lora: bool = False) -> list[str]:
    counts = ", ".join(map(str, notes.steps))
    return [
        front_matter(pipe, notes, lora=lora),
        "",
        f"# {type(pipe).__name__}, {counts} step{'s' if notes.steps != (1,) else ''}",
        "",
        f"Objective: {plain_markdown(notes.objective or 'unknown')}. Teacher: {_title(notes)}.",
        f"Made for `num_inference_steps` {counts}; other counts were not trained for."
        + (f" Sampler: {notes.sampler}." if notes.sampler else ""),
        "",
    ]


def _title(notes: Notes) -> str:
    if notes.teacher is None:
        return "none, trained from random weights"
    plain = notes.teacher if on_hub(notes) or not Path(notes.teacher).is_absolute() else Path(notes.teacher).name
    below = "".join(f" + {plain_markdown(lora.file)} x {lora.weight:g}" for lora in notes.loras)
    details = [f"{name} {plain_markdown(value)}" for name in ("variant", "revision") if (value := getattr(notes, name))]
    return plain_markdown(plain) + (f" ({', '.join(details)})" if details else "") + below


def _taking_turns(pipe: StockPipeline, notes: Notes, heads: StepHeads, here: str) -> list[str]:
    """The lines that change the last layer between the steps of a call."""
    several = next(n for n in notes.steps if n > 1)
    call = _call(pipe, replace(notes, steps=(several,)))
    return [
        f'heads, layer = load_file("{here}/{heads.FILE}")["{several}"], pipe.{heads.layer}',
        "",
        "def change(pipe, step, timestep, kwargs):",
        f"    layer.weight.data.copy_(heads[(step + 1) % {several}])",
        "    return kwargs",
        "",
        "layer.weight.data.copy_(heads[0])",
        call.replace(f"num_inference_steps={several}", f"num_inference_steps={several}, {CALLBACK}=change"),
    ]


def _call(pipe: StockPipeline, notes: Notes) -> str:
    label = min(3, (notes.num_classes or 4) - 1)
    kinds = {"none": "", "label": f"class_labels=[{label}], ", "prompt": 'prompt="a photo of a cat", '}
    arguments = "".join(f"{name}={_shown(value)}, " for name, value in call_arguments(pipe, notes).items())
    made, field = ("video", "frames") if frames_argument(pipe) else ("image", "images")
    return f"{made} = pipe({kinds[conditioning_kind(pipe)]}{arguments}num_inference_steps={notes.steps[0]}).{field}[0]"


def _stops(pipe: StockPipeline, notes: Notes) -> list[str]:
    known = ["| steps | timesteps | noise levels sigma |", "|---|---|---|"]
    lines = known if notes.stops else ["| steps | timesteps |", "|---|---|"]
    for steps in notes.steps:
        if steps in notes.stops:
            stops = notes.stops[steps]
            times, sigmas = ", ".join(_exact(s.timestep) for s in stops), ", ".join(_exact(s.sigma) for s in stops)
            lines.append(f"| {steps} | {times} | {sigmas} |")
        else:
            pipe.scheduler.set_timesteps(steps)
            lines.append(f"| {steps} | {', '.join(f'{float(t):g}' for t in pipe.scheduler.timesteps)} |")
    return lines


def _exact(value: float) -> str:
    return f"{value:.7g}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else repr(value)


def several_card(students: Students, first: Path) -> str:
    """Markdown above the folders of several students, each of which has a card of its own.

    Args:
        first: the first one's card, whose front matter holds for all.
    """
    if students.classes is not None:
        parts = [f"classes {', '.join(map(str, labels))}" for labels in students.classes]
        rule = ""
    else:
        parts = ["prompts nearest to its centre"] * len(students.folders)
        rule = (
            f" The centre of each is a row of `{students.CENTRES}`; a prompt is the mean over its tokens of the last "
            "layer of `text_encoder`, divided by its length."
        )
    rows = [f"| `{name}` | {part} |" for name, part in zip(students.folders, parts, strict=True)]
    return f"""\
---
{ModelCard.load(first).data.to_yaml()}
---

# Several students

Each folder is a whole pipeline that plain Diffusers loads, distilled for a part of the conditions (multi-student
distillation, arXiv:2410.23274). `fastgen sample` takes the folder that holds them and asks each for what is its own, as
`{students.FILE}` says.{rule}

| folder | for |
|---|---|
{chr(10).join(rows)}

```python
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{HERE}/{students.folders[0]}")
```
"""
