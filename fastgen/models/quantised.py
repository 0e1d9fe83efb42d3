"""A frozen network's layers in int8 or nf4 (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import nn

from ..errors import UserError
from .targets import find_targets

Quantised = Literal["int8", "nf4"]


def quantise(net: nn.Module, kind: Quantised) -> nn.Module:
    """Replaces, in place, the linear layers that `find_targets` finds by default by quantised ones.

    The weights that they replace are moved to the CPU, where another network with the same tensors still has them.

    Args:
        net: network on a GPU, as an `alias` of one that must keep its layers.
        kind: of the quantised weights; sums are in bf16.

    Raises:
        UserError: bitsandbytes or a GPU is missing.
    """
    device = next(net.parameters()).device
    if device.type != "cuda" or find_spec("bitsandbytes") is None:
        lacking = "a GPU, and the teacher is on the CPU" if device.type != "cuda" else "pip install bitsandbytes"
        raise UserError(f"lora.base={kind} needs {lacking}; or set lora.base=bf16")
    for name in find_targets(net):
        layer = net.get_submodule(name)
        if isinstance(layer, nn.Linear):
            net.set_submodule(name, _quantised(layer, kind, device))
            layer.weight.data = layer.weight.data.cpu()
    setattr(net, "is_loaded_in_4bit" if kind == "nf4" else "is_loaded_in_8bit", True)  # peft picks its layers by these
    return net


def _quantised(layer: nn.Linear, kind: Quantised, device: torch.device) -> nn.Module:
    import bitsandbytes as bnb

    sizes: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    weight = layer.weight.detach().cpu()
    if kind == "nf4":
        new = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=torch.bfloat16, quant_type="nf4", **sizes
        )
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
    else:
        new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, **sizes)
        new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    return new.to(device).eval()
