"""The streams of a run's data."""

import math
from typing import Literal

import torch

from ..config.schema import Config, StageConfig
from ..data import Loader
from ..seeds import seed_of


def loader_of(
    config: Config,
    stream: Literal["data", "pairs"],
    *,
    batch: int = 1,
    images: bool = False,
    device: torch.device | None = None,
) -> Loader:
    """The data as a stage, or the making of pairs, goes through them.

    Args:
        stream: each in an order of its own; pairs are not mirrored.
        batch: positions that have images of one shape.
        images: whether they are read.
        device: that they go to.
    """
    return Loader(
        config.data,
        seed=seed_of(config.seed, stream),
        batch=batch,
        flip=config.flip and stream == "data",
        only=config.chosen,
        dropout=config.caption_dropout,
        images=images,
        patience_s=config.timeouts.data,
        workers=config.workers if stream == "data" else 0,
        device=device,
    )


def positions_of(stage: StageConfig) -> int:
    """How far into the stream of the data a stage reads; further after turns that fp16 skipped."""
    train, cycle = stage.train, stage.objective.cycle
    cycles = math.ceil(train.images / (train.batch * sum("generator" in turn for turn in cycle)))
    return cycles * train.batch * (1 if train.reuse else len(cycle))
