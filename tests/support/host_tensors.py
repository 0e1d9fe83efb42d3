"""Tensors that would lie in main memory although networks are on a GPU."""

from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree


class HostTensors(TorchFunctionMode):
    """Within, `averaged` lists what is all-reduced although it would lie in main memory when networks are on a GPU.

    That is what was made without a device and never sent to one, or computed from nothing else.
    """

    MAKERS = (torch.tensor, torch.as_tensor, torch.zeros, torch.ones, torch.full, torch.empty, torch.arange)

    def __init__(self) -> None:
        super().__init__()
        self.averaged: list[torch.Size] = []
        self._made: dict[int, torch.Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and torch.device in map(type, (*args, *kwargs.values())):
            return func(*args, **kwargs).clone()
        result = func(*args, **kwargs)
        told = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = func in self.MAKERS and kwargs.get("device") is None
        if isinstance(result, torch.Tensor) and (made or (told and all(map(self._host, told)))):
            self._made[result.untyped_storage().data_ptr()] = result  # held, so that nothing else gets its place
        return result

    def _host(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._made

    def __enter__(self) -> "HostTensors":
        self._reduce, dist.all_reduce = dist.all_reduce, self._noted
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        dist.all_reduce = self._reduce
        super().__exit__(*error)

    def _noted(self, tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if self._host(tensor):
            self.averaged.append(tensor.shape)
        return self._reduce(tensor, *args, **kwargs)
