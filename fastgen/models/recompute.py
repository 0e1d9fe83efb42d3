"""What calls keep for their backward pass, measured without keeping it, and what a device has room for."""

from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef


def kept_bytes(call: Callable[[], Any], there: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of a call keeps for its backward pass; the call itself keeps none of them.

    Tensors on one memory count once. Blocks that are computed again count nothing of what is within them.

    Args:
        call: what is called; its result has no backward pass.
        there: tensors that take no memory of the graph's own, such as weights.
    """
    known, sizes = {StorageWeakRef(x.untyped_storage()) for x in there}, list[int]()

    def dropped(value: Tensor) -> None:
        storage = value.untyped_storage()
        place = StorageWeakRef(storage)  # it is nobody else's while it is referred to, even when freed
        if place not in known:
            known.add(place)
            sizes.append(storage.nbytes())

    def missing(_: None) -> Tensor:
        raise RuntimeError("this graph was measured, and kept nothing for a backward pass")

    with torch.enable_grad(), saved_tensors_hooks(dropped, missing):
        call()
    return sum(sizes)


def free_bytes(device: torch.device) -> int:
    """Bytes that a device has left, with those that PyTorch holds for new tensors."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + held
