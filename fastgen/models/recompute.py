"""Blocks that are computed again in `backward`, and how much memory the calls of others keep for it."""

from collections.abc import Callable, Iterable
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.checkpoint import checkpoint

from ..errors import UserError


def computed_again(block: Callable[..., Any], *args: Any) -> Any:
    """A block's output; in `backward` it is computed again.

    Networks are in eval mode and draw nothing, so that no state of a random generator is kept for that.
    """
    return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)


def enable_checkpointing(net: nn.Module, checkpointed: Callable[..., Any] = computed_again, *, every: int = 1) -> None:
    """Switches gradient checkpointing on.

    Args:
        checkpointed: calls a block with its inputs, so that it is computed again.
        every: of the blocks, in the order of their first calls, every so-many-th is; the others keep what they make.

    Raises:
        UserError: the network does not support it.
    """
    numbers: dict[int, int] = {}

    def called(block: Callable[..., Any], *args: Any) -> Any:
        number = numbers.setdefault(id(block), len(numbers)) if isinstance(block, nn.Module) else 0
        return block(*args) if number % every else checkpointed(block, *args)

    try:
        net.enable_gradient_checkpointing(gradient_checkpointing_func=called)  # type: ignore[operator]
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"train.gradient_checkpointing is on, and {type(net).__name__} does not support it: switch it off"
        ) from error


def kept_bytes(call: Callable[[], Any], there: Iterable[Tensor] = ()) -> int:
    """Bytes that the graph of a call keeps for its backward pass; the call itself keeps none of them.

    Tensors on one memory count once. Blocks that are computed again count nothing of what is within them, and
    parameters nothing, even those that slices were brought together to for the call.

    Args:
        call: what is called; its result has no backward pass.
        there: tensors that take no memory of the graph's own, such as weights.
    """
    known, sizes = {StorageWeakRef(x.untyped_storage()) for x in there}, list[int]()

    def dropped(value: Tensor) -> None:
        if isinstance(value if value._base is None else value._base, nn.Parameter):
            return
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
