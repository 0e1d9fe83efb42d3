"""What a user names as a teacher: a pipeline and the LoRAs that belong to it."""

from dataclasses import dataclass as plain
from typing import Annotated, Literal

import torch
from pydantic import ConfigDict, Field, FiniteFloat
from pydantic.dataclasses import dataclass

Dtype = Literal["auto", "fp32", "bf16", "fp16"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LoRAFile:
    """One LoRA or DoRA of a user in the keys of peft, Diffusers or Kohya's scripts, added to the base with a weight.

    Attributes:
        path: a .safetensors file, a folder that holds one, or a hub id.
        weight: factor of the LoRA, as in `set_adapters`; 0 and negative ones are allowed.
        file: name of the weight file in the folder or on the hub, where there are several.
    """

    path: Annotated[str, Field(min_length=1)]
    weight: FiniteFloat = 1.0
    file: Annotated[str, Field(pattern=r"\.safetensors$")] | None = None


@plain(frozen=True, kw_only=True)
class TeacherSource:
    """Where a pipeline comes from.

    Attributes:
        path: folder or hub id of a pipeline, or a single-file checkpoint (.safetensors).
        config: folder or hub id of a pipeline with the single file's architecture.
        loras: fused into the base, in this order.
        dtype: dtype of the weights; auto leaves it to the caller.
        variant: variant of the weight files, such as fp16.
        revision: branch, tag or commit on the hub.
    """

    path: str
    config: str | None = None
    loras: tuple[LoRAFile, ...] = ()
    dtype: Dtype = "auto"
    variant: str | None = None
    revision: str | None = None
