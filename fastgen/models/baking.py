r"""What a student is told made part of its weights, since a stock pipeline tells a network nothing but its time.

At the stops t_i of one step count every scalar is a function of the time, so that what its embeddings add there, e_i,
can come from the last layer of the time embedding. With h_i the input of that layer at t_i, the smallest update is

    dW = E H^+,    (W + dW) h_i = W h_i + e_i,    rank at most the number of stops,

exact at the stops, and small enough for a LoRA. Heads in the place of the last layer are fused for one step; what those
of others add to that weight is kept beside.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError
from .adapted import AdaptedDenoiser
from .conditioning import Conditioning
from .contract import RoleNetwork
from .head_bank import HEADS, HeadBank, steps_of, weight_shape
from .low_rank import DOWN_KEY, UP_KEY
from .recordable import kernel_by_kernel
from .retargeted import RetargetedDenoiser
from .scalars import ScalarEmbeddings

Scalars = Mapping[str, float]
TWO_TOLD = (
    "what a student is told beside its time cannot be baked into two networks that share the times: choose an "
    "objective without such values, or teacher_guidance.told=false"
)


def baked(
    model: RoleNetwork,
    state: Mapping[str, Tensor],
    stops: Mapping[float, Scalars],
    example: tuple[Tensor, Conditioning],
) -> dict[str, Tensor]:
    """A role's own weights, changed so that at each stop the plain network returns what it returns with the scalars.

    Args:
        state: state dict of `model.own`, on the CPU; not changed.
        stops: process time -> values of its scalars.
        example: x_t [1, ...] and its conditioning, to run the network once for each stop.

    Raises:
        UserError: see `check_bakeable`.
    """
    check_bakeable(model, stops=len(stops))
    assert isinstance(model.embeddings, ScalarEmbeddings)
    name, last = _last_layer(model.net, model.embeddings.layers[0])
    hidden = torch.stack([_input_of(last, model, t, example) for t in stops]).double()
    told = torch.stack([_added(model, values) for values in stops.values()]).double()
    update = (torch.linalg.pinv(hidden) @ told).T.cpu()
    return _updated(model, state, name, update)


@torch.no_grad()
def fused(model: RoleNetwork, state: Mapping[str, Tensor], grids: Sequence[Tensor]) -> dict[str, Tensor]:
    """A role's own weights with one fused head as the last layer, and the offsets of all other heads from it.

    The head in the weights is that of the first step of the smallest step count.

    Args:
        state: state dict of `model.own`, on the CPU; not changed.
        grids: where the student of each step count stops.

    Returns:
        The weights, and for each count n of several steps under `HEADS` + n the offsets [n, out, in, ...] of its heads
        from the one in the weights.

    Raises:
        UserError: see `check_fusible`.
    """
    check_fusible(model)
    bank = model.embeddings
    assert isinstance(bank, HeadBank)
    heads = {len(grid): bank(steps_of(grid.to(bank.offsets.device))).cpu() for grid in grids}
    first = heads[min(heads)][0]
    others = {f"{HEADS}{n}": (head - first).float() for n, head in heads.items() if n > 1}
    return {**_updated(model, state, bank.layers[0], first), **others}


def check_fusible(model: RoleNetwork) -> None:
    """Refuses a role whose fused heads its adapter could not hold.

    Raises:
        UserError: its rank is below that of a head, or it adapts that layer already.
    """
    (name,), state = model.embeddings.layers, model.own.state_dict()
    if not isinstance(_inner(model), AdaptedDenoiser):
        return
    needed = min(weight_shape(model.net.get_submodule(name))[:2])
    if _rank(state) < needed or f"{name}{DOWN_KEY}" in state:
        raise UserError(
            f"the student's heads become an update of {name}, of rank {needed}: lora.rank must be at least {needed} "
            f"(it is {_rank(state)}), and lora.targets must leave that layer out"
        )


def check_bakeable(model: RoleNetwork, *, stops: int) -> None:
    """Refuses a role whose embeddings could not be baked.

    Raises:
        UserError: its adapter's rank is below the number of stops, or it adapts that layer already; there are two
            networks.
    """
    layer, *others = model.embeddings.layers
    if others:
        raise UserError(TWO_TOLD)
    name, _ = _last_layer(model.net, layer)
    state = model.own.state_dict()
    if isinstance(_inner(model), AdaptedDenoiser) and (_rank(state) < stops or f"{name}{DOWN_KEY}" in state):
        raise UserError(
            f"what the student is told at its {stops} stops is baked into an update of {name}: lora.rank must be at "
            f"least {stops} (it is {_rank(state)}), and lora.targets must leave that layer out"
        )


def _inner(model: RoleNetwork) -> Any:
    """The denoiser in its own process."""
    return model.inner if isinstance(model, RetargetedDenoiser) else model


def _updated(model: RoleNetwork, state: Mapping[str, Tensor], name: str, update: Tensor) -> dict[str, Tensor]:
    """The state with an update [out, in, ...] of a layer's weight."""
    inner = _inner(model)
    if isinstance(inner, AdaptedDenoiser):
        return {**state, **_low_rank(update / inner.scale, _rank(state), name)}
    key = f"{name}.weight"
    return {**state, key: (state[key].double() + update).to(state[key].dtype)}


def _rank(state: Mapping[str, Tensor]) -> int:
    return len(next(value for key, value in state.items() if key.endswith(DOWN_KEY)))


def _last_layer(net: nn.Module, embedding: str) -> tuple[str, nn.Linear]:
    """The layer whose output is the time embedding, and its name.

    Raises:
        UserError: an activation follows it.
    """
    module = net.get_submodule(embedding)
    if module._modules.get("post_act") is not None:
        raise UserError(
            f"{embedding} of {type(net).__name__} ends with an activation, behind which nothing that a student is told "
            "could be baked into its weights: choose an objective without such values, or teacher_guidance.told=false"
        )
    path, layer = [(path, m) for path, m in module.named_modules() if isinstance(m, nn.Linear)][-1]
    return (f"{embedding}.{path}" if path else embedding), layer


@torch.no_grad()
def _input_of(layer: nn.Linear, model: RoleNetwork, t: float, example: tuple[Tensor, Conditioning]) -> Tensor:
    """What reaches the layer at time t, [in]."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    x, cond = example
    try:
        with kernel_by_kernel():
            model(x, torch.full((len(x),), t, dtype=torch.float64, device=x.device), cond)
    finally:
        hook.remove()
    return seen[0].reshape(-1, seen[0].shape[-1])[0]


@torch.no_grad()
def _added(model: RoleNetwork, values: Scalars) -> Tensor:
    """What the embeddings add to the time embedding, [out]."""
    device = next(model.embeddings.parameters()).device
    added: Tensor = model.embeddings({name: torch.tensor([value], device=device) for name, value in values.items()})[0]
    return added


def _low_rank(update: Tensor, rank: int, name: str) -> dict[str, Tensor]:
    """The update as two factors of the adapter's rank, which is at least its own."""
    u, s, v = torch.linalg.svd(update.flatten(1), full_matrices=False)
    kept = min(rank, len(s))
    down, up = torch.zeros(rank, v.shape[1]), torch.zeros(len(u), rank)
    down[:kept] = (s[:kept, None].sqrt() * v[:kept]).float()
    up[:, :kept] = (u[:, :kept] * s[:kept].sqrt()).float()
    window = update.shape[2:]
    down, up = down.unflatten(1, update.shape[1:]), up.reshape(len(u), rank, *[1] * len(window))
    return {f"{name}{DOWN_KEY}": down, f"{name}{UP_KEY}": up}
