"""Several roles on one frozen network: each is a low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685) of its own.

    real_score = W        fake_score = W + B_f A_f        generator = W + B_g A_g

A call acts under its role from beginning to end; so does each checkpointed block when it is computed again in
`backward`, whatever role acts then.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import UserError
from ..process import Latent, Prediction, Process, Time
from .conditioning import Conditioning
from .denoiser import NetworkDenoiser
from .quantised import beside_weights
from .scalars import ScalarEmbeddings
from .targets import find_targets, one_dimensional


@dataclass(frozen=True)
class Adaptation:
    """What is trained of each role.

    Args:
        rank: of the low-rank updates.
        alpha: their scale times the rank; None for a scale of 1.
        targets: layers to adapt, see `find_targets`.
        norms: each role also has its own copy of the norm layers' parameters and of the linear layers' biases.
    """

    rank: int = 64
    alpha: float | None = None
    targets: Sequence[str] | None = None
    norms: bool = False


class SharedNetwork:
    """A frozen network that several roles act on, one at a time.

    Args:
        net: network without adapters; adapter layers are put into it and its parameters are frozen. Given an `alias`
            of a network, that one keeps its structure, state dict and outputs, and in memory there still is only one.
        roles: the roles that get an adapter; it starts as an exact zero update.
        adaptation: its form.

    Raises:
        UserError: a target fits no layer.
    """

    def __init__(self, net: nn.Module, roles: Sequence[str], adaptation: Adaptation) -> None:
        self.net = net.requires_grad_(False)
        self.scale = (adaptation.alpha or adaptation.rank) / adaptation.rank
        self.role: str | None = None
        self.adapters: dict[str | None, nn.Module] = {}
        self._swaps: list[tuple[nn.Module, str, dict[str | None, nn.Parameter]]] = []
        targets = find_targets(net, adaptation.targets)
        own = one_dimensional(net) if adaptation.norms else []
        for role in roles:
            _inject(lora_config(targets, adaptation.rank, adaptation.alpha), self.net, role)
        layers = {name: m for name, m in self.net.named_modules() if isinstance(m, BaseTunerLayer)}
        self._active: list[str] = []
        for layer in layers.values():
            layer._active_adapter = self._active  # one list for all: a switch is one assignment
            layer.cast_input_dtype_enabled = False  # autocast does that, without copies in fp32
        for role in roles:
            self.adapters[role] = _tree(_low_rank(layers, role))
        for name, module, kind in own:
            self._add_swap(name, module, kind)

    @contextmanager
    def acting(self, role: str | None) -> Iterator[None]:
        """Within, the network is that role's; None is the base. Nests, and leaves `requires_grad` alone."""
        before = self.role
        self._switch(role)
        try:
            yield
        finally:
            self._switch(before)

    def checkpoint_blocks(self) -> None:
        """Blocks are computed again in `backward`, under the role that they were called under.

        Raises:
            UserError: the network does not support it.
        """

        def checkpointed(block: Any, *args: Any) -> Any:
            role = self.role

            def under_role(*inputs: Any) -> Any:
                with self.acting(role):
                    return block(*inputs)

            return checkpoint(under_role, *args, use_reentrant=False)

        enable_checkpointing(self.net, gradient_checkpointing_func=checkpointed)

    def _switch(self, role: str | None) -> None:
        if role == self.role:
            return
        self.role = role
        self._active[:] = [] if role is None else [role]
        for module, name, choices in self._swaps:
            module._parameters[name] = choices[role]

    def _add_swap(self, name: str, module: nn.Module, kind: str) -> None:
        base = module._parameters[kind]
        assert base is not None
        choices: dict[str | None, nn.Parameter] = {None: base}
        for role, adapter in self.adapters.items():
            choices[role] = nn.Parameter(base.detach().float().clone())
            _plant(adapter, f"{name}.{kind}", choices[role])
        self._swaps.append((module, kind, choices))


class AdaptedDenoiser(nn.Module):
    """One role of a shared network. Its parameters and its state dict are its adapter; the base role has none.

    Args:
        denoiser: over `network.net`, shared by all roles.
        network: the switch.
        role: who acts; a role without an adapter is the base itself.
        scalars: names of further values that this role can be told, see `ScalarEmbeddings`.
    """

    def __init__(
        self, denoiser: NetworkDenoiser, network: SharedNetwork, role: str, *, scalars: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.embeddings = ScalarEmbeddings(network.net, scalars)
        self._shared = (denoiser, network)  # a tuple, so that the network is not registered as a submodule
        self.role = role if role in network.adapters else None
        self.adapter = network.adapters.get(role, nn.Module())

    @property
    def net(self) -> nn.Module:
        """The shared network, under whatever role acts now."""
        return self._shared[1].net

    @property
    def scale(self) -> float:
        """What its low-rank updates are multiplied by."""
        return self._shared[1].scale

    @property
    def own(self) -> nn.Module:
        """What a role has of its own: its adapter."""
        return self.adapter

    @property
    def process(self) -> Process:
        return self._shared[0].process

    @property
    def scalars(self) -> tuple[str, ...]:
        return self.embeddings.names

    def forward(
        self, x_t: Latent, t: Time, cond: Conditioning, scalars: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        denoiser, network = self._shared
        with network.acting(self.role), self.embeddings.told(network.net, scalars or {}):
            return denoiser.predict(x_t, t, cond, call=network.net._call_impl if scalars else None)

    def guide(self, cond: Prediction, null: Prediction, w: float | Tensor) -> Prediction:
        return self._shared[0].guide(cond, null, w)

    def tap(self, x_t: Latent, t: Time, cond: Conditioning, layers: Sequence[str]) -> list[Any]:
        denoiser, network = self._shared
        with network.acting(self.role):
            return denoiser.tap(x_t, t, cond, layers)


def alias(net: nn.Module) -> nn.Module:
    """The network's modules anew on the same tensors: what is added to the one is not seen by the other."""
    held = [*net.parameters(), *net.buffers(), *beside_weights(net)]
    return copy.deepcopy(net, {id(value): value for value in held})


def enable_checkpointing(net: nn.Module, **settings: Any) -> None:
    """Switches gradient checkpointing on.

    Raises:
        UserError: the network does not support it.
    """
    try:
        net.enable_gradient_checkpointing(**settings)  # type: ignore[operator]
    except (AttributeError, ValueError) as error:
        raise UserError(
            f"train.gradient_checkpointing is on, and {type(net).__name__} does not support it: switch it off"
        ) from error


def merged(base: nn.Module, state: Mapping[str, Tensor], *, alpha: float | None = None) -> nn.Module:
    """A copy of the base with a role's adapter added into its weights, see `merge`."""
    return merge(copy.deepcopy(base), state, alpha=alpha)


@torch.no_grad()
def merge(net: nn.Module, state: Mapping[str, Tensor], *, alpha: float | None = None) -> nn.Module:
    """Adds a role's adapter into the weights of its base, in place; a stock network, without adapter layers.

    Args:
        net: network without adapters.
        state: of an `AdaptedDenoiser.adapter`.
        alpha: that the adapter was trained with.
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
        state: of an `AdaptedDenoiser.adapter`.
        alpha: that the adapter was trained with.

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
    return LoraConfig(r=rank, lora_alpha=rank if alpha is None else alpha, target_modules=list(targets))


def _inject(config: LoraConfig, net: nn.Module, role: str) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several adapters are meant
        inject_adapter_in_model(config, net, role)


def _low_rank(layers: Mapping[str, Any], role: str) -> Iterator[tuple[str, nn.Parameter]]:
    """The two factors of every layer, in fp32 whatever the base is in."""
    for name, layer in layers.items():
        for factor in ("lora_A", "lora_B"):
            parameter = getattr(layer, factor)[role].weight
            parameter.data = parameter.data.float()
            yield f"{name}.{factor}.weight", parameter


def _tree(parameters: Iterator[tuple[str, nn.Parameter]]) -> nn.Module:
    root = nn.Module()
    for path, parameter in parameters:
        _plant(root, path, parameter)
    return root


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Registers the parameter so that `path` is its key."""
    *way, name = path.split(".")
    for step in way:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root._modules[step]  # type: ignore[assignment]
    root.register_parameter(name, parameter)
