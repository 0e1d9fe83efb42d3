"""The front matter of a student's card, by which the hub finds, shows and relates it."""

from typing import Any

from huggingface_hub import ModelCardData

from ..models.pipelines.arguments import conditioning_kind, frames_argument
from ..models.pipelines.notes import Notes
from ..models.pipelines.stock_pipeline import StockPipeline
from .text import on_hub

TAGS = ("fastgen", "distillation", "few-step")
_RELATIONS = {True: "adapter", False: "finetune"}


def front_matter(pipe: StockPipeline, notes: Notes, *, lora: bool) -> str:
    """YAML between two lines of dashes.

    Args:
        lora: whether the folder holds a LoRA, and not a whole pipeline.
    """
    known = bool(notes.teacher) and on_hub(notes)
    further: dict[str, Any] = {**notes.licence, **({"base_model_relation": _RELATIONS[lora]} if known else {})}
    tags = [*TAGS, f"diffusers:{type(pipe).__name__}", *(["lora", "template:sd-lora"] if lora else [])]
    data = ModelCardData(
        library_name="diffusers",
        pipeline_tag=task_of(pipe),
        tags=[*tags, *([notes.objective] if notes.objective else [])],
        base_model=notes.teacher if known else None,
        **further,
    )
    return f"---\n{data.to_yaml()}\n---"


def task_of(pipe: StockPipeline) -> str:
    """The hub's name of what a pipeline does."""
    if conditioning_kind(pipe) != "prompt":
        return "unconditional-image-generation"
    return "text-to-video" if frames_argument(pipe) else "text-to-image"
