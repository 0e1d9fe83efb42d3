"""A LoRA in the keys of kohya-ss' sd-scripts, which ComfyUI reads as well.

A UNet keeps the names of Diffusers. Flux has those of its first publication, where the projections that read the same
tokens are one matrix: their updates B_i A_i become one, with the A_i below each other and the B_i along a diagonal.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from itertools import groupby

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from ..errors import UserError
from ..models.low_rank import DOWN_KEY, UP_KEY
from .adapter import Adapter

PREFIX = "lora_unet_"
_DOUBLE: Mapping[str, tuple[str, ...]] = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn_proj": ("attn.to_out.0",),
    "img_mlp_0": ("ff.net.0.proj",),
    "img_mlp_2": ("ff.net.2",),
    "img_mod_lin": ("norm1.linear",),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn_proj": ("attn.to_add_out",),
    "txt_mlp_0": ("ff_context.net.0.proj",),
    "txt_mlp_2": ("ff_context.net.2",),
    "txt_mod_lin": ("norm1_context.linear",),
}
_SINGLE: Mapping[str, tuple[str, ...]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation_lin": ("norm.linear",),
}
_FLUX = {"transformer_blocks": ("double_blocks", _DOUBLE), "single_transformer_blocks": ("single_blocks", _SINGLE)}
_BLOCK = re.compile(r"(?P<stack>\w+)\.(?P<index>\d+)\.(?P<layer>.+)")


def kohya_state(net: nn.Module, adapter: Adapter) -> dict[str, Tensor]:
    """The adapter in those keys; every alpha is the rank.

    Args:
        net: the network that it belongs to, for the sizes of layers that are joined.

    Raises:
        UserError: no such names are known for this network or one of its layers.
    """
    check_kohya(net, adapter.layers)
    plain, state = adapter.plain(), {}
    for name, layers in _named(net, plain.layers):
        down, up = _joined(net, plain, layers) if len(layers) > 1 else _single(plain, layers[0])
        state[f"{PREFIX}{name}.lora_down.weight"] = down
        state[f"{PREFIX}{name}.lora_up.weight"] = up
        state[f"{PREFIX}{name}.alpha"] = torch.tensor(float(len(down)))
    return state


def check_kohya(net: nn.Module, layers: Collection[str]) -> None:
    """Raises UserError where no such names are known for the network or for one of these layers of it."""
    if not isinstance(net, UNet2DConditionModel | FluxTransformer2DModel):
        raise UserError(
            f"no Kohya keys are known for {type(net).__name__}, only for the UNet of Stable Diffusion and for Flux: "
            "use Diffusers keys"
        )
    unknown = [] if isinstance(net, UNet2DConditionModel) else sorted(x for x in layers if _flux_name(x) is None)
    if unknown:
        raise UserError(
            f"there are no Kohya keys for {unknown[0]} of {type(net).__name__} and {len(unknown) - 1} more layers: use "
            "Diffusers keys, or train with lora.targets inside the blocks alone"
        )


def _named(net: nn.Module, layers: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    """A file's name for each layer, or for all the layers that are one there."""
    if isinstance(net, UNet2DConditionModel):
        return [(layer.replace(".", "_"), (layer,)) for layer in layers]
    named = sorted({found for layer in layers if (found := _flux_name(layer))})
    return [(name, next(group)[1]) for name, group in groupby(named, key=lambda found: found[0])]


def _flux_name(layer: str) -> tuple[str, tuple[str, ...]] | None:
    """The first publication's name of a Flux layer, and the layers that are one under it, in their order."""
    match = _BLOCK.fullmatch(layer)
    stack, names = _FLUX.get(match["stack"], ("", {})) if match else ("", {})
    for name, together in names.items():
        if match and match["layer"] in together:
            before = f"{match['stack']}.{match['index']}."
            return f"{stack}_{match['index']}_{name}", tuple(before + one for one in together)
    return None


def _single(adapter: Adapter, layer: str) -> tuple[Tensor, Tensor]:
    return adapter.weights[layer + DOWN_KEY], adapter.weights[layer + UP_KEY]


def _joined(net: nn.Module, adapter: Adapter, layers: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """A [n rank, in] and B [sum out, n rank] of n layers that read the same; layers without an update have zeros."""
    rank, first = adapter.config.r, next(layer for layer in layers if layer + DOWN_KEY in adapter.weights)
    down, up = _single(adapter, first)
    downs, ups = [], []
    for layer in layers:
        size = net.get_submodule(layer).get_parameter("weight").shape[0]
        downs.append(adapter.weights.get(layer + DOWN_KEY, torch.zeros_like(down)))
        ups.append(adapter.weights.get(layer + UP_KEY, up.new_zeros(size, rank)))
    return torch.cat(downs), torch.block_diag(*ups)
