"""Finds, on a machine without a GPU, where the host would wait for one.

On the CPU all tensors look alike. Here the host's are marked: what is made without a device, drawn from a stream of the
host or computed of such tensors alone. All others are the device's, which is called "cpu:0".
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cpu", 0)
READS = {
    Tensor.item,
    Tensor.tolist,
    Tensor.numpy,
    Tensor.__bool__,
    Tensor.__float__,
    Tensor.__int__,
    Tensor.__index__,
    Tensor.nonzero,
    Tensor.unique,
    Tensor.allclose,
    Tensor.equal,
    torch.nonzero,
    torch.unique,
    torch.equal,
    torch.allclose,
    torch.masked_select,
    torch.quantile,
}
"""What gives the host a value, or a size that depends on one."""
MADE_OF_DATA = {torch.tensor, torch.as_tensor}


class HostWaits(Exception):
    """The host would wait for the device here."""


class DeviceStream(torch.Generator):
    """A random stream of the device."""

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE


class Unwaiting(TorchFunctionMode):
    """Within, whoever reads a value of the device, or sends it one from memory that is not pinned, gets a `HostWaits`.

    Args:
        host: tensors of the host.
    """

    def __init__(self, host: Iterable[Tensor]) -> None:
        super().__init__()
        for tensor in host:
            tensor.of_host = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        told = kwargs or {}
        given = [leaf for leaf in tree_leaves([args, told]) if isinstance(leaf, Tensor)]
        if getattr(func, "__self__", None) is Tensor.device:
            return torch.device("cpu") if _of_host(args[0]) else DEVICE
        ours = all(map(_of_host, given))
        uploaded = func is Tensor.to and _of_host(args[0]) and _aim(args, told) == DEVICE
        if not ours and (func in READS or _reads(func, args, told)):
            raise HostWaits(f"{func.__name__} reads the device")
        if (uploaded and not told.get("non_blocking")) or (func in MADE_OF_DATA and told.get("device") == DEVICE):
            raise HostWaits(f"{func.__name__} copies to the device from memory that is not pinned")
        if not (ours or uploaded) and any(_of_host(x) and x.ndim for x in given):
            raise HostWaits(f"{func.__name__} is given tensors of the host and of the device")
        out = func(*args, **told)
        if uploaded:
            return out.view_as(out)  # no copy was made: a tensor without the mark, in place of the host's
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (ours if given else _made_here(told)):
                leaf.of_host = True
        return out


def _of_host(tensor: Tensor) -> bool:
    return getattr(tensor, "of_host", False)


def _made_here(told: dict[str, Any]) -> bool:
    stream = told.get("generator")
    return not isinstance(stream, DeviceStream) and told.get("device") != DEVICE


def _aim(args: Any, told: dict[str, Any]) -> torch.device | None:
    """Where a tensor is moved to."""
    aim = told.get("device", args[1] if len(args) > 1 else None)
    if isinstance(aim, Tensor):
        return torch.device("cpu") if _of_host(aim) else DEVICE
    return aim if isinstance(aim, torch.device) else None


def _reads(func: Any, args: Any, told: dict[str, Any]) -> bool:
    """A mask as an index, a draw that first looks at its weights, a condition that is counted."""
    if func is Tensor.__getitem__:
        return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))
    if func is torch.multinomial:
        count = told.get("num_samples", args[1] if len(args) > 1 else 1)
        return count == 1 or not told.get("replacement", False)
    return func is torch.where and len(args) + len(told) == 1
