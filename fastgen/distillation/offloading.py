"""What `memory: low` moves to main memory, and what it cannot be combined with."""

from ..config.schema import Config
from ..engine.dtypes import BY_BITSANDBYTES, base_of
from ..errors import UserError


def check_memory(config: Config) -> None:
    """Refuses, before anything is loaded, what cannot leave the device, or would save nothing.

    Raises:
        UserError: naming the settings, the rule and the remedy.
    """
    if config.memory != "low":
        return
    for stage in config.stages:
        if stage.train.sharding != "none":
            raise UserError(
                f"memory=low moves whole tensors of one process, and stage {stage.name!r} has train.sharding="
                f"{stage.train.sharding}: set train.sharding=none, or memory=ample"
            )
    if not config.swaps:
        return
    base = base_of(config)
    if base in BY_BITSANDBYTES:
        raise UserError(
            f"memory=low keeps the blocks of the shared network in main memory, and layers in lora.base={base} cannot "
            "leave the GPU: set lora.base=fp8, or memory=ample"
        )
    for stage in config.stages:
        if stage.train.recomputed != 1:
            raise UserError(
                f"memory=low takes blocks of the shared network off the GPU after each call, but stage {stage.name!r} "
                "keeps them for the backward pass: set train.gradient_checkpointing=true, or memory=ample"
            )
        if stage.train.compile:
            raise UserError(
                f"memory=low changes the blocks of the shared network at each call, and stage {stage.name!r} has "
                "train.compile, whose code holds them: set train.compile=false, or memory=ample"
            )
