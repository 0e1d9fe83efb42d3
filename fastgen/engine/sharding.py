"""Which networks of a stage are sharded."""

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from ..models.adapted import AdaptedDenoiser
from ..models.denoiser import NetworkDenoiser
from ..models.discriminator import FeatureDiscriminator
from ..models.retargeted import RetargetedDenoiser
from ..models.roles import Roles
from ..models.sharding import Sharding, mesh_of, shard
from .distributed import parallel


def shard_roles(roles: Roles, sharding: Sharding, device: torch.device) -> bool:
    """Slices every network of the roles, frozen ones too; whether it did so, which needs several processes.

    Adapters stay whole, and so do the few parameters of a shared network that roles put their own in the place of.
    """
    if sharding == "none" or not parallel():
        return False
    mesh = mesh_of(device, sharding)
    for net, swapped in networks_of(roles).items():
        shard(net, mesh, but=swapped)
    return True


def forget_calls(roles: Roles) -> None:
    """Forgets, between turns, the calls that no backward pass followed.

    PyTorch would keep their order for good, and before version 2.14 has no setting against that.
    """
    for net in networks_of(roles):
        if isinstance(net, FSDPModule) and hasattr(net, "reset_iter_state"):
            net.reset_iter_state()


def networks_of(roles: Roles) -> dict[nn.Module, list[nn.Parameter]]:
    """The networks, each once, and what of each stays whole."""
    found: dict[nn.Module, list[nn.Parameter]] = {}
    for member in roles.members.values():
        speaker = member.inner if isinstance(member, RetargetedDenoiser) else member
        if isinstance(speaker, FeatureDiscriminator):
            parts = (*speaker.heads, *(part for part in speaker.children() if part is not speaker.heads))
            found |= {part: [] for part in parts if next(part.parameters(), None) is not None}
        elif isinstance(speaker, AdaptedDenoiser):
            found[speaker.net] = speaker.swapped
        elif isinstance(speaker, NetworkDenoiser):
            found[speaker.net] = []
    return found
