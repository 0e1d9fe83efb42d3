"""Which prompts a run draws, and their encoding before it, shared by its processes."""

import os
from collections.abc import Sequence

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from ..config.schema import Config
from ..data.captions import Captions
from ..data.decode import Size
from ..data.texts import Chained, Instead, Reworded, Some
from ..engine.distributed import barrier
from ..engine.loading import loader_of, positions_of
from ..models.pipelines.arguments import check_given
from ..models.pipelines.pipeline import Pipeline
from .previews import PREVIEW_IMAGES


def drawn(config: Config) -> Sequence[str]:
    """The prompts that the stages, the pairs, the previews and the measurements of a run ask for, each number once.

    Others are encoded when they are asked for, as after turns that fp16 skipped.
    """
    captions = config.data.captions
    return () if captions is None else _some(captions, _trained(config, captions) | _looked_at(config, captions))


def drawn_by_size(config: Config) -> dict[Size | None, Sequence[str]]:
    """The prompts that a run asks for by the size of their samples: that of a bucket, or for None the student's."""
    captions, bucket = config.data.captions, config.data.bucket
    if captions is None or bucket is None:
        return {None: drawn(config)}
    trained, of_text = _trained(config, captions), bucket[captions.owners]
    found: dict[Size | None, Sequence[str]] = {None: _some(captions, _looked_at(config, captions))}
    for number, size in enumerate(config.data.shapes):
        there = of_text == number
        if there.any():
            found[size] = _some(captions, trained & np.append(there, True))
    return found


def _some(captions: Captions, asked: NDArray[np.bool_]) -> Sequence[str]:
    """The texts that `asked` marks; its last entry stands for the empty prompt."""
    return Some(Chained([captions.texts, ("",)]), np.flatnonzero(asked))


def _looked_at(config: Config, captions: Captions) -> NDArray[np.bool_]:
    """Which texts previews and measurements ask for."""
    asked = np.zeros(len(captions.texts) + 1, bool)
    there = range(len(captions)) if config.chosen is None else config.chosen
    asked[captions.numbers(there[: _shown(config)], lambda _: 0)] = True
    return asked


def _trained(config: Config, captions: Captions) -> NDArray[np.bool_]:
    """Which texts stages and pairs ask for."""
    asked = np.zeros(len(captions.texts) + 1, bool)
    for stage in config.stages:
        asked |= loader_of(config, "data", batch=stage.train.batch).drawn(positions_of(stage))
    if any(stage.objective.needs.pairs for stage in config.stages):
        asked |= loader_of(config, "pairs").drawn(config.pairs.count)
    return asked


def in_contexts(config: Config, asked: Sequence[str]) -> Sequence[str]:
    """The prompts; then all of them put into each stage's `context`, and with its `instead` replaced."""
    needs = [stage.objective.needs for stage in config.stages]
    contexts, forgotten = dict.fromkeys(each.context for each in needs), dict.fromkeys(each.instead for each in needs)
    reworded = [Reworded(asked, words) for words in contexts if words]
    return Chained([asked, *reworded, *(Instead(asked, others) for others in forgotten if others)])


def encode(config: Config, pipeline: Pipeline, accelerator: Accelerator) -> None:
    """The drawn prompts' conditioning: on disk once, each process with its share; in memory by every process.

    Where nodes have a disk each, those of a node then share what the other nodes did.

    Raises:
        UserError: the data have none of what the teacher is conditioned on, or there is no room for them.
    """
    given = config.data.prompts if pipeline.kind == "prompt" else config.data.num_classes
    check_given(pipeline.pipe, pipeline.kind, given=given is not None)
    shown = accelerator.is_main_process
    for size, asked in drawn_by_size(config).items():
        prompts = in_contexts(config, asked)
        _encode(config, pipeline if size is None else pipeline.sized(*size), prompts, accelerator, progress=shown)


def _encode(
    config: Config, pipeline: Pipeline, prompts: Sequence[str], accelerator: Accelerator, *, progress: bool
) -> None:
    if config.cache is None:
        pipeline.encode(prompts, progress=progress)
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
    shares = {(accelerator.process_index, accelerator.num_processes), (accelerator.local_process_index, here)}
    for share in sorted(shares, key=lambda share: -share[1]):
        pipeline.encode(prompts, share=share, progress=progress)
        barrier()
        pipeline.encoder.refresh()


def _shown(config: Config) -> int:
    """How many of the first prompts previews and measurements ask for."""
    measured = config.evaluate.num if config.evaluate.protocol not in ("none", "digits") else 0
    return max(measured, PREVIEW_IMAGES if config.log.previews else 0)
