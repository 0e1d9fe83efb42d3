"""A frozen network's layers in float8, int8 or nf4 (QLoRA, Dettmers et al. 2023, arXiv:2305.14314)."""

from typing import Any, Literal

import torch
from torch import nn

from .casting import cast
from .experts import Experts, networks_in
from .float8 import in_float8
from .targets import find_targets

Quantised = Literal["fp8", "int8", "nf4"]


def quantise(
    net: nn.Module, kind: Quantised, device: str | torch.device, *, home: str | torch.device | None = None
) -> nn.Module:
    """Replaces, in place, the linear layers that `find_targets` finds by default by quantised ones on a device.

    They go there one by one, so that the device never holds the network as it was. All else is cast to bf16 and
    follows at the end; layers that are quantised already stay, and so do the tensors of other networks.

    Args:
        net: network, as an `alias` where another one must keep its layers.
        kind: number format of the quantised weights; sums are in bf16.
        device: device that rounds, layer by layer.
        home: device that the network is wanted on; by default that one.
    """
    home = device if home is None else home
    for name in find_targets(net):
        layer = net.get_submodule(name)
        if isinstance(layer, nn.Linear) and layer.weight.is_floating_point():
            net.set_submodule(name, _quantised(layer, kind, torch.device(device)).to(home))
    return cast(_apart(net), torch.bfloat16).to(home)


def unquantised(net: Any) -> Any:
    """The network as its class makes it, without weights, if some of its layers are quantised; else the network."""
    if all(parameter.is_floating_point() for parameter in net.parameters()):
        return net
    with torch.device("meta"):
        parts: list[Any] = [*networks_in(net).values()]
        bare = [type(part).from_config(part.config) for part in parts]
    return bare[0] if len(bare) == 1 else Experts(*bare, boundary=net.boundary)


def beside_weights(net: nn.Module) -> list[object]:
    """What quantised layers keep beside their parameters: the scales of their weights."""
    return [vars(module)[name] for module in net.modules() for name in ("state", "quant_state") if name in vars(module)]


def _apart(net: nn.Module) -> nn.Module:
    """Gives the network tensors that nobody else has, in the same memory until they are cast or moved."""
    fresh: dict[int, Any] = {}
    for module in net.modules():
        for slot, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point():
                own = nn.Parameter(parameter.detach(), requires_grad=False)
                module._parameters[slot] = fresh.setdefault(id(parameter), own)
        for slot, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[slot] = fresh.setdefault(id(buffer), buffer.detach())
    return net


def _quantised(layer: nn.Linear, kind: Quantised, device: torch.device) -> nn.Module:
    if kind == "fp8":
        return in_float8(layer, device)
    import bitsandbytes as bnb

    sizes: dict[str, Any] = {"bias": layer.bias is not None, "device": "meta"}
    weight = layer.weight.detach().cpu()
    if kind == "nf4":
        new = bnb.nn.Linear4bit(
            layer.in_features, layer.out_features, compute_dtype=torch.bfloat16, quant_type="nf4", **sizes
        )
        new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=new)
        new.support_avx512bf16_for_cpu = False  # it packs weights of some sizes anew in the midst of a call
    else:
        new = bnb.nn.Linear8bitLt(layer.in_features, layer.out_features, has_fp16_weights=False, **sizes)
        new.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    new.bias = layer.bias
    moved: nn.Module = new.to(device).eval()
    return moved
