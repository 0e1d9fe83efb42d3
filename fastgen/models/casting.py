"""What tensors are in: casts of networks and of what they are told, as stock pipelines have both."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

HALF = (torch.bfloat16, torch.float16)


def cast(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network with its weights in `dtype`, in place, as `from_pretrained(dtype=...)` loads them.

    Modules that a network names in `_keep_in_fp32_modules` are in float32 whatever the dtype is. Buffers that are not
    saved, such as tables of positions, stay as the network computed them, and integers, such as quantised weights,
    as they are.
    """
    for path, tensor in saved(net):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype_at(net, path, dtype))
    return net


def dtype_of(net: Any) -> torch.dtype:
    """What a network is in, as Diffusers' `net.dtype` has it: the dtype of its first weights.

    Parts that Diffusers keeps in float32, such as norms, do not count. `net.dtype` first looks at every module for a
    layerwise cast, which takes longer than a small layer; here that is asked of a network stored in 8 bits alone.
    """
    kept = getattr(net, "_keep_in_fp32_modules", None) or ()
    for name, weight in net.named_parameters():
        if weight.is_floating_point() and not any(part in name for part in kept):
            found: torch.dtype = weight.dtype if weight.dtype.itemsize > 1 else net.dtype
            return found
    rest: torch.dtype = net.dtype
    return rest


def dtype_at(net: nn.Module, path: str, dtype: torch.dtype) -> torch.dtype:
    """What `cast` to a dtype leaves a tensor in."""
    kept = set(getattr(net, "_keep_in_fp32_modules", None) or ())
    return dtype if kept.isdisjoint(path.split(".")) else torch.float32


def renewed(net: nn.Module, change: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """The network with other tensors, in place: what `change` makes of each of `saved`, by its path.

    Tensors are not written to, so that those of an `alias` stay what they are elsewhere; one that is in two places
    stays one.
    """
    made: dict[int, nn.Parameter] = {}
    for path, module in net.named_modules():
        for slot, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in made:
                value = change(f"{path}.{slot}", parameter.detach())
                same = value is parameter or value.data_ptr() == parameter.data_ptr()
                made[id(parameter)] = parameter if same else nn.Parameter(value, requires_grad=False)
            module._parameters[slot] = None if parameter is None else made[id(parameter)]
        for slot, buffer in module._buffers.items():
            if buffer is not None and slot not in module._non_persistent_buffers_set:
                module._buffers[slot] = change(f"{path}.{slot}", buffer)
    return net


def fitting(told: Any, dtype: torch.dtype) -> Any:
    """The arguments of a network's call, with tensors in half precision cast to `dtype`.

    A pipeline passes text embeddings in the dtype in which it was loaded, which may differ from that of the network
    being called. Float32 arguments stay as they are, because a pipeline passes these to networks of every dtype.
    """
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.dtype in HALF else x, told)


def saved(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers by their paths."""
    for path, module in net.named_modules():
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", tensor
