"""The teacher as a config names it: loaded, and seen through a probe."""

import torch

from ..config.schema import Config
from ..engine.dtypes import QUANTISED, base_of, teacher_dtype
from ..models.pipelines.arguments import noted_classes, size_arguments
from ..models.pipelines.attention import set_attention
from ..models.pipelines.components import denoisers_of
from ..models.pipelines.create import create
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.teacher import load_teacher


def teacher_of(config: Config, device: torch.device) -> Pipeline:
    """The teacher of a run on a device.

    Raises:
        UserError: it cannot be loaded, or the probe's self-test fails.
    """
    return probed(config, load_pipeline(config, device))


def load_pipeline(config: Config, device: torch.device) -> StockPipeline:
    """The teacher's stock pipeline on a device, in the dtypes and with the attention of the run.

    Raises:
        UserError: it cannot be loaded.
    """
    spec = config.teacher
    if spec.new is not None:
        pipe = create(spec.new.pipeline, spec.new.parts, seed=config.seed).to(device)
    else:
        base = base_of(config) if config.sharing == "lora" else None
        quantised = next((kind for kind in QUANTISED if kind == base), None)
        auto = teacher_dtype(config)
        pipe = load_teacher(spec.source, device=device, auto=auto, quantised=quantised, sparing=config.swaps)
    for network in denoisers_of(pipe).values():
        set_attention(network, config.attention)
    return pipe


def probed(config: Config, pipe: StockPipeline, *, test: bool = True) -> Pipeline:
    """The teacher as a config asks for its samples.

    Args:
        test: see `Pipeline`; one that is not tested keeps no conditioning on disk.

    Raises:
        UserError: the probe's self-test fails.
    """
    spec, wanted = config.teacher, config.student
    num_classes, null_label = spec.num_classes, spec.null_label
    if spec.new is None:
        num_classes, null_label = noted_classes(spec.source.path, num_classes, null_label)
    return Pipeline(
        pipe,
        num_classes=num_classes,
        null_label=null_label,
        size=size_arguments(pipe, height=wanted.height, width=wanted.width, frames=wanted.frames),
        negative_prompt=spec.negative_prompt,
        cache=config.cache if test else None,
        test=test,
        sparing=config.memory == "low",
    )
