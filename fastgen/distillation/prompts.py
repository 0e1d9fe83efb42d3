"""Which prompts a run draws, and their encoding before it, shared by its processes."""

import math
import os
from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator

from ..config.schema import Config, StageConfig
from ..data.captions import Captions
from ..data.texts import Chained, Some
from ..engine.distributed import meet
from ..engine.loading import loader_of
from ..models.pipelines.pipeline import Pipeline
from .previews import PREVIEW_IMAGES


def drawn(config: Config) -> Sequence[str]:
    """The prompts that the stages, the pairs, the previews and the measurements of a run ask for, each number once.

    Others are encoded when they are asked for, as after turns that fp16 skipped.
    """
    captions = Captions.of(config.data)
    if captions is None:
        return ()
    asked = np.zeros(len(captions.texts) + 1, bool)
    asked[captions.numbers(range(min(_shown(config), len(captions))), lambda _: 0)] = True
    for stage in config.stages:
        asked |= loader_of(config, "data", batch=stage.train.batch).drawn(_positions(stage))
    if any(stage.objective.needs.pairs for stage in config.stages):
        asked |= loader_of(config, "pairs").drawn(config.pairs.count)
    return Some(Chained([captions.texts, ("",)]), np.flatnonzero(asked))


def encode(config: Config, pipeline: Pipeline, accelerator: Accelerator) -> None:
    """The drawn prompts' conditioning: on disk once, each process with its share; in memory by every process.

    Where nodes have a disk each, those of a node then share what the other nodes did.

    Raises:
        UserError: there is no room for them.
    """
    prompts, shown = drawn(config), accelerator.is_main_process
    if config.cache is None:
        pipeline.encode(prompts, progress=shown)
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    shares = {(accelerator.process_index, accelerator.num_processes), (accelerator.local_process_index, here)}
    for share in sorted(shares, key=lambda share: -share[1]):
        pipeline.encode(prompts, share=share, progress=shown)
        meet()
        pipeline.encoder.refresh()


def _positions(stage: StageConfig) -> int:
    """How far into the stream of the data a stage reads."""
    train, cycle = stage.train, stage.objective.cycle
    cycles = math.ceil(train.images / (train.batch * sum("generator" in turn for turn in cycle)))
    return cycles * train.batch * (1 if train.reuse else len(cycle))


def _shown(config: Config) -> int:
    """How many of the first prompts previews and measurements ask for."""
    measured = config.evaluate.num if config.evaluate.protocol not in ("none", "digits") else 0
    return max(measured, PREVIEW_IMAGES if config.log.previews else 0)
