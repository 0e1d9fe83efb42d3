"""A role's adapter added into the weights of its base, and as what LoRA files hold.

LoRA files of users are added to a pipeline by `fastgen.models.pipelines.fuse`.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from ..errors import UserError


def merged(base: nn.Module, state: Mapping[str, Tensor], *, alpha: float | None = None) -> nn.Module:
    """A copy of the base with a role's adapter added into its weights, see `merge`."""
    return merge(copy.deepcopy(base), state, alpha=alpha)


@torch.no_grad()
def merge(net: nn.Module, state: Mapping[str, Tensor], *, alpha: float | None = None) -> nn.Module:
    """Adds a role's adapter into the weights of its base, in place; a stock network, without adapter layers.

    Args:
        net: network without adapters.
        state: state dict of an `AdaptedDenoiser.adapter`.
        alpha: alpha that the adapter was trained with.
    """
    weights = dict(net.named_parameters())
    for name, update in low_rank_updates(state, alpha=alpha):
        weight = weights[name]
        weight.copy_(weight + update.view_as(weight).to(weight.device))
    for key, value in state.items():
        if not key.endswith((".lora_A.weight", ".lora_B.weight")):
            weights[key].copy_(value)
    return net


def low_rank_updates(state: Mapping[str, Tensor], *, alpha: float | None = None) -> Iterator[tuple[str, Tensor]]:
    """(name of a weight, what a role's adapter adds to it, [out, in ...] flattened), one after the other."""
    for key, value in state.items():
        if key.endswith(".lora_B.weight"):
            name = key.removesuffix(".lora_B.weight")
            down = state[f"{name}.lora_A.weight"].float()
            update = value.float().flatten(1) @ down.flatten(1) * ((alpha or len(down)) / len(down))
            yield f"{name}.weight", update


def lora_layers(state: Mapping[str, Tensor], *, alpha: float | None = None) -> tuple[dict[str, Tensor], LoraConfig]:
    """A role's adapter as peft's own state dict, and the config that goes with it.

    Args:
        state: state dict of an `AdaptedDenoiser.adapter`.
        alpha: alpha that the adapter was trained with.

    Raises:
        UserError: it holds norm layers or biases, which a LoRA file cannot.
    """
    downs = {key.removesuffix(".lora_A.weight"): len(v) for key, v in state.items() if key.endswith(".lora_A.weight")}
    if len(state) != 2 * len(downs):
        raise UserError(
            "lora.norms trained norm layers and biases, which a LoRA file cannot hold: export the whole pipeline, or "
            "train with lora.norms=false"
        )
    return dict(state), lora_config(list(downs), next(iter(downs.values())), alpha)


def lora_config(targets: Sequence[str], rank: int, alpha: float | None) -> LoraConfig:
    """Plain LoRA without dropout on these layers."""
    scale: Any = rank if alpha is None else alpha  # peft names whole numbers alone, and computes with any
    return LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets))
