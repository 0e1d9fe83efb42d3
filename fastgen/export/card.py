"""The README.md of an exported folder: what it is and the lines that sample from it."""

from diffusers import DiffusionPipeline

from ..models.arguments import conditioning_kind, guidance_argument
from ..notes import Notes


def card(pipe: DiffusionPipeline, notes: Notes) -> str:
    """Markdown with the call for every declared step count and the timesteps it stops at."""
    kind = type(pipe).__name__
    label = min(3, (notes.num_classes or 4) - 1)
    asked_by = {"none": "", "label": f"class_labels=[{label}], ", "prompt": 'prompt="a photo of a cat", '}
    unguided = {} if notes.guidance is None else guidance_argument(pipe, notes.guidance)
    asked = asked_by[conditioning_kind(pipe)] + "".join(f"{name}={w:g}, " for name, w in unguided.items())
    counts = ", ".join(map(str, notes.steps))
    lines = [
        "---",
        "library_name: diffusers",
        "tags: [fastgen, distillation, few-step]",
        "---",
        "",
        f"# {kind}, {counts} step{'s' if notes.steps != (1,) else ''}",
        "",
        f"Objective: {notes.objective or 'unknown'}. Teacher: {notes.teacher or 'none, trained from random weights'}.",
        f"Made for `num_inference_steps` {counts}; other counts were not trained for.",
        "",
        "```python",
        "from diffusers import DiffusionPipeline",
        "",
        'pipe = DiffusionPipeline.from_pretrained("path/to/this/folder")',
        f"image = pipe({asked}num_inference_steps={notes.steps[0]}).images[0]",
        "```",
        "",
        "| steps | timesteps |",
        "|---|---|",
    ]
    for steps in notes.steps:
        pipe.scheduler.set_timesteps(steps)
        stops = ", ".join(f"{float(t):g}" for t in pipe.scheduler.timesteps)
        lines.append(f"| {steps} | {stops} |")
    if notes.null_label is not None:
        lines += ["", f"Label {notes.null_label} means no class; {notes.num_classes} real classes come before it."]
    return "\n".join(lines) + "\n"
