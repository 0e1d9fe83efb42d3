"""Several roles on one frozen network: each is a low-rank adapter (LoRA, Hu et al. 2021, arXiv:2106.09685) of its own.

    real_score = W        fake_score = W + B_f A_f        generator = W + B_g A_g

A call acts under its role from beginning to end; so does each checkpointed block when it is computed again in
`backward`, whatever role acts then.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from .bank import Bank, Seat
from .experts import networks_in
from .low_rank import DOWN, DOWN_KEY, UP, UP_KEY, draw, factor_shapes, make_adaptable, scale_of
from .quantised import beside_weights
from .recompute import computed_again, enable_checkpointing
from .targets import find_targets, one_dimensional


@dataclass(frozen=True)
class Adaptation:
    """What is trained of each role.

    Args:
        rank: rank of the low-rank updates.
        alpha: scale of the updates times the rank; None for a scale of 1.
        targets: layers to adapt, see `find_targets`.
        norms: each role also has its own copy of the norm layers' parameters and of the linear layers' biases.
    """

    rank: int = 64
    alpha: float | None = None
    targets: Sequence[str] | None = None
    norms: bool = False


class Switch(NamedTuple):
    """A slot among a layer's parameters, and what it holds while a role acts; None is the base."""

    parameters: dict[str, nn.Parameter | None]
    slot: str
    choices: dict[str | None, nn.Parameter | None]


class SharedNetwork:
    """A frozen network that several roles act on, one at a time.

    Args:
        net: network without adapters; its layers become adaptable and its parameters are frozen. To leave a network
            as it is, pass an `alias` of it, which shares the memory of its weights.
        roles: the roles that get an adapter; it starts as an exact zero update.
        adaptation: form of the adapters.
        compute: dtype that the updates are computed in, where it is not that of the layers.

    Raises:
        UserError: a target fits no layer.
    """

    def __init__(
        self, net: nn.Module, roles: Sequence[str], adaptation: Adaptation, *, compute: torch.dtype | None = None
    ) -> None:
        self.net = net.requires_grad_(False)
        self.scale = scale_of(adaptation.rank, adaptation.alpha)
        self.role: str | None = None
        seats = [*_factors(net, adaptation, self.scale, compute), *(_own(net) if adaptation.norms else ())]
        groups = [[seat for seat in seats if seat.name.startswith(start)] for start in networks_in(net)]
        device = next(net.parameters()).device
        self.banks: dict[str | None, Bank] = {role: Bank(groups, device) for role in roles}
        self.adapters = {role: _started(seats, bank) for role, bank in self.banks.items()}
        self._switches = [_switch(seat, self.banks) for seat in seats]
        self._working = {role: tuple(bank.working.values()) for role, bank in self.banks.items()} | {None: ()}
        self._of_block: dict[int, list[Switch]] = {}

    @contextmanager
    def acting(self, role: str | None) -> Iterator[None]:
        """Within, the network is that role's; None is the base. Nests, and leaves `requires_grad` alone."""
        if role in self.banks:
            self.banks[role].refresh()
        with self._switched(role, self._switches):
            yield

    @property
    def trainable(self) -> tuple[str | None, Sequence[nn.Parameter]]:
        """The role that acts, and what its layers compute with that may be trained."""
        return self.role, self._working[self.role]

    @property
    def swapped(self) -> list[nn.Parameter]:
        """Parameters of the base that roles put their own in the place of."""
        return [base for switch in self._switches if (base := switch.choices[None]) is not None]

    def checkpoint_blocks(self, every: int = 1) -> None:
        """Blocks are computed again in `backward`, under the role that they were called under.

        Args:
            every: see `enable_checkpointing`.

        Raises:
            UserError: the network does not support it.
        """

        def checkpointed(block: Any, *args: Any) -> Any:
            role, switches = self.role, self._switches_in(block)

            def under_role(*inputs: Any) -> Any:
                with self._switched(role, switches):
                    return block(*inputs)

            return computed_again(under_role, *args)

        enable_checkpointing(self.net, checkpointed, every=every)

    @contextmanager
    def _switched(self, role: str | None, switches: Sequence[Switch]) -> Iterator[None]:
        """Within, these slots are that role's."""
        before = self.role
        if role == before:
            yield
            return
        try:
            self._switch(role, switches)
            yield
        finally:
            self._switch(before, switches)

    def _switch(self, role: str | None, switches: Sequence[Switch]) -> None:
        self.role = role
        for parameters, slot, choices in switches:
            parameters[slot] = choices[role]

    def _switches_in(self, block: Any) -> Sequence[Switch]:
        """The switches of a block's layers; all of them for a block that is no module and may call any layer."""
        if not isinstance(block, nn.Module):
            return self._switches
        if id(block) not in self._of_block:
            inside = {id(module._parameters) for module in block.modules()}
            self._of_block[id(block)] = [switch for switch in self._switches if id(switch.parameters) in inside]
        return self._of_block[id(block)]


def alias(net: nn.Module) -> nn.Module:
    """A copy of the network's modules that shares its tensors: layers added to one do not change the other."""
    held = [*net.parameters(), *net.buffers(), *beside_weights(net)]
    return copy.deepcopy(net, {id(value): value for value in held})


def _factors(net: nn.Module, adaptation: Adaptation, scale: float, compute: torch.dtype | None) -> Iterator[Seat]:
    """The two factors of every layer to adapt, which becomes adaptable."""
    for name in find_targets(net, adaptation.targets):
        layer = net.get_submodule(name)
        make_adaptable(layer)
        weight: Any = layer.weight
        dtype = compute or (weight.dtype if weight.is_floating_point() else torch.bfloat16)
        down, up = factor_shapes(layer, adaptation.rank)
        yield Seat(f"{name}{DOWN_KEY}", layer, DOWN, down, dtype)
        yield Seat(f"{name}{UP_KEY}", layer, UP, up, dtype, scale)


def _own(net: nn.Module) -> Iterator[Seat]:
    """What norm layers own, and the biases of linear layers."""
    for name, module, slot in one_dimensional(net):
        base: Any = module._parameters[slot]
        yield Seat(f"{name}.{slot}", module, slot, tuple(base.shape), base.dtype)


@torch.no_grad()
def _started(seats: Sequence[Seat], bank: Bank) -> nn.Module:
    """A role's adapter as a module, at its start: A is drawn, B is zero, and all else is the base's."""
    root = nn.Module()
    for seat in seats:
        piece = bank.pieces[seat.name]
        if seat.slot == DOWN:
            draw(piece)
        elif seat.base is not None:
            piece.copy_(seat.base)
        _plant(root, seat.name, piece)
    return root


def _switch(seat: Seat, banks: Mapping[str | None, Bank]) -> Switch:
    choices = {role: bank.working[seat.name] for role, bank in banks.items()}
    return Switch(seat.module._parameters, seat.slot, {None: seat.base, **choices})


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Registers the parameter so that `path` is its key."""
    *way, name = path.split(".")
    for step in way:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root._modules[step]  # type: ignore[assignment]
    root.register_parameter(name, parameter)
