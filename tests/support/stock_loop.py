"""What a stock loop of three samples says at its own times, and our words for the same call."""

from typing import Any

import torch
from torch import Tensor

from fastgen.models.pipelines.arguments import free_count
from fastgen.models.pipelines.canonical import canonical, view
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.watch import Step, record

PROMPTS = ["fox", "a red bird in the snow", "two"]


def asked(pipeline: Pipeline, rows: list[int]) -> dict[str, Any]:
    """Arguments of `Pipeline.condition`: the prompts, or labels, at these places."""
    return {"labels": torch.tensor([3, 1, 8])[rows], "prompts": [PROMPTS[row] for row in rows]}


def stock(pipeline: Pipeline, steps: int, **guidance: Any) -> list[Step]:
    """Steps of the stock loop for all three."""
    told = {"none": {}, "label": {"class_labels": [3, 1, 8]}, "prompt": {"prompt": PROMPTS}}[pipeline.kind]
    with canonical(pipeline.pipe):
        call = {**told, **pipeline.size, **guidance, **free_count(pipeline.pipe)}
        seen = record(pipeline.pipe, call, steps=steps, rows=3)
        return [view(pipeline.pipe, step) for step in seen]


def times(pipeline: Pipeline, steps: list[Step]) -> Tensor:
    return pipeline.reading.time(torch.tensor([step.timestep for step in steps], dtype=torch.float64))


def agree(ours: Tensor, theirs: Tensor) -> None:
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 5e-5
