"""What tensors are in: casts of networks and of what they are told, as stock pipelines have both."""

from collections.abc import Iterator
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
    kept = set(getattr(net, "_keep_in_fp32_modules", None) or ())
    for path, tensor in saved(net):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype if kept.isdisjoint(path.split(".")) else torch.float32)
    return net


def fitting(told: Any, dtype: torch.dtype) -> Any:
    """What a network is told, with all that is in half precision in `dtype`.

    A pipeline gives text in the dtype that it was loaded in, which need not be that of the network now called; what
    it gives in float32 it gives so to networks of every dtype.
    """
    return tree_map(lambda x: x.to(dtype) if isinstance(x, Tensor) and x.dtype in HALF else x, told)


def saved(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and saved buffers by their paths."""
    for path, module in net.named_modules():
        own = {**module._parameters, **module._buffers}
        for name, tensor in own.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f"{path}.{name}", tensor
