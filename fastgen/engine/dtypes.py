"""What the parts of a run are in: the teacher, the network of shared roles, the forward passes and the student.

| part                               | dtype                                                                  |
| ---------------------------------- | ---------------------------------------------------------------------- |
| teacher                            | `teacher.dtype`; auto: that of the network of shared roles, else fp32   |
| network of shared roles            | `lora.base`; auto: bf16 where every stage has precision bf16, else fp32 |
| trained networks                   | fp32, or as `train.masters` says: bf16 beside what makes them fp32, or   |
|                                    | bf16; those that a network keeps in fp32 are in it                      |
| adapters, heads, target, average   | fp32                                                                   |
| frozen copies                      | bf16 under precision bf16, else the teacher's                          |
| forward passes                     | autocast to `train.precision`; under fp32, and of networks in half      |
|                                    | precision that their pipeline speaks to in it, the network's own        |
"""

from collections.abc import Collection
from importlib.util import find_spec
from typing import get_args

import torch
from torch import nn

from ..config.lora import Base, Sharing
from ..config.schema import Config, StageConfig
from ..config.train import Precision
from ..errors import UserError
from ..models.casting import HALF, dtype_of
from ..models.pipelines.source import DTYPES
from ..models.quantised import Quantised

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
QUANTISED: tuple[Quantised, ...] = get_args(Quantised)
BY_BITSANDBYTES = ("int8", "nf4")


def base_of(config: Config) -> Base:
    """What the network of shared roles is in, the same in every stage."""
    if config.lora.base != "auto":
        return config.lora.base
    return "bf16" if all(stage.train.precision == "bf16" for stage in config.stages) else "fp32"


def teacher_dtype(config: Config) -> torch.dtype:
    """What the teacher is loaded in, and its student saved."""
    auto = "bf16" if config.sharing == "lora" and base_of(config) != "fp32" else "fp32"
    return DTYPES[auto if config.teacher.dtype == "auto" else config.teacher.dtype]


def autocast_of(net: nn.Module, precision: Precision, told: Collection[torch.dtype]) -> torch.dtype | None:
    """The dtype of the autocast around a network's forward pass, or None for no autocast.

    A network in half precision has none, as in a stock pipeline. The exception is one that was cast from a float32
    pipeline: the pipeline still passes it float32 arguments, which autocast has to convert.

    Args:
        told: dtypes of the arguments that its pipeline passes to it, see `Pipeline.told_in`.
    """
    own, autocast = dtype_of(net), AUTOCAST[precision]
    cast = own == autocast and torch.float32 in told and not any(dtype in HALF for dtype in told)
    return autocast if cast or own not in HALF else None


def check_dtypes(config: Config) -> None:
    """Refuses, before anything is loaded, what no forward pass could compute.

    Raises:
        UserError: naming the settings, the rule and the remedy.
    """
    for stage in config.stages:
        _check_masters(stage, config.sharing)
    base = base_of(config)
    if config.sharing == "full" or base == "fp32":
        return
    for stage in config.stages:
        if stage.train.precision != "bf16":
            raise UserError(
                f"lora.base is {base}, whose layers compute in bf16, but stage {stage.name!r} has train.precision "
                f"{stage.train.precision}: set train.precision=bf16 or lora.base=fp32"
            )
        _check_derivatives(stage, base)
    if base in BY_BITSANDBYTES and find_spec("bitsandbytes") is None:
        raise UserError(f"lora.base={base} needs bitsandbytes: pip install 'fastgen[quantised]', or set lora.base=bf16")
    if base in QUANTISED and config.sharing == "lora" and config.teacher.dtype in ("fp32", "fp16"):
        raise UserError(
            f"lora.base={base} makes the teacher's network compute in bf16 as soon as it is loaded, and teacher.dtype="
            f"{config.teacher.dtype} keeps the rest of its pipeline in another dtype: set teacher.dtype to auto or bf16"
        )
    if base in BY_BITSANDBYTES and config.lora.norms:
        raise UserError(
            f"lora.norms trains the biases of layers, and lora.base={base} casts these whenever it computes: set "
            "lora.norms=false or lora.base=bf16"
        )


def _check_derivatives(stage: StageConfig, base: Base) -> None:
    """Refuses an objective with derivatives that quantised layers do not have."""
    if base in QUANTISED and stage.objective.needs.fine_times:
        raise UserError(
            f"stage {stage.name!r} takes exact derivatives along its trajectory, and layers in lora.base={base} have "
            "none in forward mode: set lora.base=bf16, or average over a step (objective.derivative_step=0.03)"
        )
    if base == "fp8" and stage.objective.needs.second_derivative:
        raise UserError(
            f"stage {stage.name!r} has gan.r1, a second derivative, and layers in lora.base=fp8 have first ones only: "
            "use gan.approximate_r1, or set lora.base=bf16"
        )


def _check_masters(stage: StageConfig, sharing: Sharing) -> None:
    train = stage.train
    if train.masters == "fp32":
        if train.gradients != "fp32":
            raise UserError(
                f"stage {stage.name!r} has train.gradients {train.gradients}, but weights in fp32, whose gradients are "
                "in it too: set train.masters to split or bf16, or leave gradients out"
            )
        return
    if train.precision != "bf16":
        raise UserError(
            f"stage {stage.name!r} has train.masters {train.masters}, with which networks compute in bf16, but "
            f"train.precision {train.precision}: set train.precision=bf16 or train.masters=fp32"
        )
    if sharing == "lora":
        raise UserError(
            f"stage {stage.name!r} has train.masters {train.masters}, but with sharing=lora no network is trained, and "
            "adapters have masters in fp32 beside what layers compute with: leave masters out"
        )
