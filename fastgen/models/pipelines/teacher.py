"""The pipeline that a user wants to distil: a folder, a hub id or a single file, with LoRAs of their own."""

from collections.abc import Mapping
from typing import Any

import torch

from ...errors import UserError
from ..offload import swap_blocks
from ..quantised import Quantised, quantise
from .components import denoisers_of
from .fuse import fuse, lora_file
from .loading import dtypes_in, load, locate, moved, variant_of, weight_files
from .single_file import load_single_file
from .source import DTYPES, TeacherSource
from .stock_pipeline import StockPipeline


def load_teacher(
    source: TeacherSource,
    *,
    device: str | torch.device,
    auto: torch.dtype = torch.float32,
    quantised: Quantised | None = None,
    sparing: bool = False,
    parts: Mapping[str, Any] | None = None,
) -> StockPipeline:
    """The pipeline of a source, read straight into its dtype; its LoRAs are fused and its networks plain.

    Args:
        auto: what `dtype: auto` stands for.
        parts: parts by name that need not be read, where nothing is fused into them.
        quantised: what the layers of its denoisers are in when these reach the device; None leaves them as they are.
        sparing: blocks of its denoisers stay in main memory between calls, see `swap_blocks`, and so do its other
            parts, until somebody moves these.

    Raises:
        UserError: as `load`, or a single file or a LoRA cannot be used.
    """
    dtype = DTYPES.get(source.dtype, auto)
    loras = [(lora_file(lora), lora.weight) for lora in source.loras]
    base = locate(source.path, variant=source.variant, revision=source.revision)
    first = "cpu" if quantised or sparing else device
    if base.is_file():
        pipe = moved(load_single_file(base, config=source.config, dtype=dtype), base, first)
    else:
        pipe = load(base, device=first, dtype=dtype, variant=source.variant, parts=None if loras else parts)
    if loras and len(denoisers_of(pipe)) > 1:
        raise UserError(
            f"the {type(pipe).__name__} has two denoisers, and teacher.loras does not say which of them a LoRA belongs "
            "to: add the LoRAs to its weights, save it, and give that folder as teacher.path"
        )
    fuse(pipe, loras)
    for network in denoisers_of(pipe).values():
        if quantised is not None:
            quantise(network, quantised, device, home="cpu" if sparing else device)
        if sparing:
            swap_blocks(network, torch.device(device))
    return pipe if sparing else moved(pipe, base, device, but=() if loras else parts or ())


def held_exactly(source: TeacherSource, pipe: StockPipeline, dtype: torch.dtype) -> bool:
    """Whether the denoisers still hold what their files do, which were loaded in a dtype.

    They do where all of their files are in that dtype, nothing was fused, and nothing is in a narrower one now.
    """
    folder = locate(source.path, variant=source.variant, revision=source.revision)
    if source.loras or folder.is_file():
        return False
    files = weight_files(folder, variant_of(folder, source.variant))
    for name, network in denoisers_of(pipe).items():
        now = {parameter.dtype for parameter in network.parameters()}
        if not now <= {dtype, torch.float32} or dtypes_in(*files.get(name, ())) != {dtype}:
            return False
    return True
