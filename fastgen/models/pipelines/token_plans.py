"""Tokens on several processes by Diffusers' own plans for its networks (context parallelism).

Attention exchanges heads for tokens, so that each process attends to all tokens with some of the heads (DeepSpeed
Ulysses, arXiv:2309.14509).
"""

from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks.context_parallel import apply_context_parallel, remove_context_parallel
from diffusers.models._modeling_parallel import ContextParallelConfig, ParallelConfig
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from ...errors import UserError
from ..sequences import Parts


def groups_of(device: torch.device, size: int) -> DeviceMesh:
    """The processes in groups of so many that have parts of the same sequences, in the order of their numbers."""
    shape, names = (dist.get_world_size() // size, 1, size), ("batches", "ring", "ulysses")
    return init_device_mesh(device.type, shape, mesh_dim_names=names)


class PlannedParts(Parts):
    """The parts of the tokens of a network of Diffusers.

    `enable_parallelism` does the same where there is an accelerator, and cannot be undone.

    Args:
        net: network, whose tokens lie apart from here on.
        groups: see `groups_of`.

    Raises:
        UserError: there is no plan for the network, or its heads cannot be shared.
    """

    def __init__(self, net: nn.Module, groups: DeviceMesh) -> None:
        super().__init__(groups.get_group(2))
        plan: Any = getattr(net, "_cp_plan", None)
        size = groups.size(2)
        if not plan:
            raise UserError(
                f"Diffusers has no plan by which the tokens of {type(net).__name__} lie on several processes: set "
                "train.sequence_parallel=1"
            )
        heads = getattr(net, "config", {}).get("num_attention_heads", size)
        if heads % size:
            raise UserError(
                f"the {heads} attention heads of {type(net).__name__} cannot be shared by {size} processes: set "
                "train.sequence_parallel to a divisor of their number"
            )
        self._net, self._plan = net, plan
        self._axes = ContextParallelConfig(ulysses_degree=size, mesh=groups)
        self._config = ParallelConfig(context_parallel_config=self._axes)
        self._config.setup(dist.get_rank(), dist.get_world_size(), torch.device(groups.device_type), mesh=groups)
        self.part()

    def part(self) -> None:
        self._tell(self._config)
        apply_context_parallel(self._net, self._axes, self._plan)

    def join(self) -> None:
        remove_context_parallel(self._net, self._plan)
        self._tell(None)

    def _tell(self, config: ParallelConfig | None) -> None:
        for module in self._net.modules():
            processor: Any = getattr(module, "processor", None)
            if hasattr(processor, "_parallel_config"):
                processor._parallel_config = config
