"""The teacher as a config names it: loaded, and seen through a probe."""

import torch
from torch import nn

from ..config.schema import Config
from ..engine.dtypes import QUANTISED, base_of, teacher_dtype
from ..models.experts import networks_in
from ..models.pipelines.arguments import noted_classes, size_arguments
from ..models.pipelines.attention import set_attention
from ..models.pipelines.components import denoisers_of
from ..models.pipelines.create import create
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.pipelines.student_network import check_called_alike
from ..models.pipelines.teacher import load_teacher
from ..seeds import seed_of


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
    pipeline = Pipeline(
        pipe,
        num_classes=num_classes,
        null_label=null_label,
        size=size_arguments(pipe, height=wanted.height, width=wanted.width, frames=wanted.frames),
        negative_prompt=spec.negative_prompt,
        cache=config.cache if test else None,
        test=test,
        sparing=config.memory == "low",
    )
    return pipeline if wanted.network is None else pipeline.starting_from(_start(config, pipeline, test=test))


def _start(config: Config, pipeline: Pipeline, *, test: bool) -> nn.Module:
    """The network of its own that the generator starts as a copy of; on the meta device if it is not tested."""
    assert config.student.network is not None
    source = config.student.network.source
    if not test:
        with torch.device("meta"):
            return source.outline(pipeline.network)
    network = source.built(pipeline.network, seed=seed_of(config.seed, "student.network"))
    for part in networks_in(network).values():
        set_attention(part, config.attention)
    check_called_alike(network, pipeline)
    return network
