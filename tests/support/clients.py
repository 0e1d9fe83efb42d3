"""How other programs read a LoRA file: the names they look for, and what they add to which rows of which weight.

Facts of ComfyUI (comfy/lora.py, comfy/utils.py) and of kohya-ss' sd-scripts (networks/lora.py, networks/lora_flux.py,
library/flux_models.py), read in November 2026. Both multiply B A by alpha / rank where the file says an alpha, and by
1 where it says none.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_TRANSFORMER = r"transformer_blocks\.\d+\.(attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))|proj_(in|out)"
_RESNET = r"conv[12]|time_emb_proj|conv_shortcut"
_UNET_BLOCKS = (
    rf"(down|up)_blocks\.\d+\.attentions\.\d+\.({_TRANSFORMER})|mid_block\.attentions\.0\.({_TRANSFORMER})"
    rf"|((down|up)_blocks\.\d+|mid_block)\.resnets\.\d+\.({_RESNET})|\w+_blocks\.\d+\.(down|up)samplers\.0\.conv"
)
_UNET_ENDS = r"conv_in|conv_out|(time|add)_embedding\.linear_[12]"
UNET = {"ComfyUI": re.compile(f"{_UNET_BLOCKS}|{_UNET_ENDS}"), "sd-scripts": re.compile(_UNET_BLOCKS)}

_STREAMS = {
    "img": ("attn.to_{}", "attn.to_out.0", "ff", "norm1"),
    "txt": ("attn.add_{}_proj", "attn.to_add_out", "ff_context", "norm1_context"),
}


@dataclass(frozen=True)
class WeightRows:
    """Rows of one of a client's weights: from `start` on, both counted in widths of the model."""

    weight: str
    start: int = 0
    size: int | None = None


def flux_rows(layer: str) -> WeightRows:
    """Where the weight of a layer of Diffusers' Flux lies in the model as it was first published."""
    stack, index, inner = layer.split(".", 2)
    return (_double if stack == "transformer_blocks" else _single)(index)[inner]


def _double(index: str) -> dict[str, WeightRows]:
    rows = {}
    for stream, (attention, out, ff, norm) in _STREAMS.items():
        start = f"double_blocks.{index}.{stream}"
        rows |= {attention.format(x): WeightRows(f"{start}_attn.qkv", i, 1) for i, x in enumerate("qkv")}
        rows |= {out: WeightRows(f"{start}_attn.proj"), f"{norm}.linear": WeightRows(f"{start}_mod.lin")}
        rows |= {f"{ff}.net.0.proj": WeightRows(f"{start}_mlp.0"), f"{ff}.net.2": WeightRows(f"{start}_mlp.2")}
    return rows


def _single(index: str) -> dict[str, WeightRows]:
    start = f"single_blocks.{index}"
    rows = {f"attn.to_{x}": WeightRows(f"{start}.linear1", i, 1) for i, x in enumerate("qkv")}
    rows |= {"proj_mlp": WeightRows(f"{start}.linear1", 3, 4), "proj_out": WeightRows(f"{start}.linear2")}
    return rows | {"norm.linear": WeightRows(f"{start}.modulation.lin")}


def flat(weight: str) -> str:
    """The name of a weight in a Kohya file."""
    return "lora_unet_" + weight.replace(".", "_")


def acting(up: Tensor, down: Tensor, scale: float = 1.0) -> Tensor:
    """What a low-rank update makes of two random inputs, [out, 2]: as telling as the product, which may be large."""
    inputs = torch.randn(down[0].numel(), 2, generator=torch.Generator().manual_seed(0))
    return scale * (up.flatten(1) @ (down.flatten(1) @ inputs))


def updates(file: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """(name, what is added to its weight, `acting`) as a client computes it from a file of either kind of keys."""
    ends = {".lora_down.weight": ".lora_up.weight", ".lora_A.weight": ".lora_B.weight"}
    for key, down in file.items():
        for end, other in ends.items():
            if key.endswith(end):
                name = key.removesuffix(end)
                alpha = file.get(f"{name}.alpha", torch.tensor(float(len(down))))
                yield name, acting(file[name + other], down, float(alpha) / len(down))
