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
from .low_rank import DOWN_KEY, UP_KEY, scale_of
from .made import Change, path_of


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
    weights, change = dict(net.named_parameters()), adding(state, alpha=alpha)
    for name in adapted(state):
        weights[name].copy_(change(path_of(name), weights[name]))
    return net


def adding(state: Mapping[str, Tensor], *, alpha: float | None = None) -> Change:
    """What `merge` makes of each tensor of a base, one at a time; a sum has the wider dtype of its two parts."""

    def change(path: str, weight: Tensor) -> Tensor:
        name = path.removeprefix(".")
        if (update := low_rank_update(state, name, alpha=alpha, device=weight.device)) is not None:
            return weight + update.view_as(weight)
        return state[name].to(weight) if name in state else weight

    return change


def adapted(state: Mapping[str, Tensor]) -> list[str]:
    """The weights of its base that a role's adapter changes, by name."""
    names = [key for key in state if not key.endswith(DOWN_KEY)]
    return [f"{key.removesuffix(UP_KEY)}.weight" if key.endswith(UP_KEY) else key for key in names]


def low_rank_updates(
    state: Mapping[str, Tensor], *, alpha: float | None = None, device: torch.device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """(name of a weight, what a role's adapter adds to it, as in `low_rank_update`), one after the other."""
    for name in adapted(state):
        if (update := low_rank_update(state, name, alpha=alpha, device=device)) is not None:
            yield name, update


def low_rank_update(
    state: Mapping[str, Tensor], name: str, *, alpha: float | None = None, device: torch.device | None = None
) -> Tensor | None:
    """What a role's adapter adds to a weight, [out, in ...] flattened; None where it has no factors for it.

    Args:
        device: where it is computed, and stays; that of its factors where not given.
    """
    layer = name.removesuffix(".weight")
    up, down = (state.get(layer + factor) for factor in (UP_KEY, DOWN_KEY))
    if up is None or down is None:
        return None
    up, down = (factor.to(device, torch.float32).flatten(1) for factor in (up, down))
    return up @ down * scale_of(len(down), alpha)


def lora_layers(state: Mapping[str, Tensor], *, alpha: float | None = None) -> tuple[dict[str, Tensor], LoraConfig]:
    """A role's adapter as peft's own state dict, and the config that goes with it.

    Args:
        state: state dict of an `AdaptedDenoiser.adapter`.
        alpha: alpha that the adapter was trained with.

    Raises:
        UserError: it holds norm layers or biases, which a LoRA file cannot.
    """
    downs = {key.removesuffix(DOWN_KEY): len(v) for key, v in state.items() if key.endswith(DOWN_KEY)}
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
