"""How weights are moved along their gradients: AdamW with moments in float32 or eight bits, and Muon.

A rule sees float32 weights and gradients, whatever the network holds, and lets a flag on the device undo an update.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from ..models.owned import Owned, Place
from . import eight_bits
from .eight_bits import CODES, LEAST, SCALES, Blocks

RuleName = Literal["adamw", "adamw8bit", "muon"]


@dataclass(frozen=True)
class Unit:
    """What a rule steps as one: a tensor, or of a flat one the part that is a parameter.

    Args:
        tensor: index of the tensor among those of an optimizer.
        place: where in it the parameter lies; None for all of it.
    """

    tensor: int
    place: Place | None = None

    def part(self, tensor: Tensor) -> Tensor:
        """The part of a tensor like that one."""
        return tensor if self.place is None else self.place.part(tensor)


@dataclass(frozen=True)
class Update:
    """One update of some units.

    Args:
        weights, gradients: of each unit, in float32; the weights are changed in place.
        states: of each unit's tensor by name, likewise.
        units: their places in those.
        settings: of the optimizer: lr, betas, eps, weight_decay, momentum, fused.
        blocked: on the device; where it is 1, nothing changes.
        rng: stream for roundings, for an update of its own.
    """

    weights: list[Tensor]
    gradients: list[Tensor]
    states: list[dict[str, Tensor]]
    units: Sequence[Unit]
    settings: Mapping[str, Any]
    blocked: Tensor | None
    rng: Callable[[], torch.Generator | None]

    def state(self, name: str) -> list[Tensor]:
        """The units' parts of a state."""
        return [unit.part(state[name]) for unit, state in zip(self.units, self.states, strict=True)]


@dataclass(frozen=True)
class Pass:
    """One update of whole tensors by a kernel of our own.

    Args:
        settings: lr, betas, eps, weight_decay.
        seed: of the update, for what is rounded by chance.
        numbers: of each tensor, which tell them apart in what is drawn.
        factor: what gradients in half precision are multiplied by, on the device; None for 1.
        blocked: on the device; where it is 1, nothing changes. None for 0.
    """

    settings: Mapping[str, Any]
    seed: int
    numbers: Sequence[int]
    factor: Tensor | None = None
    blocked: Tensor | None = None


Kernel = Callable[[Sequence[Tensor], Sequence[dict[str, Tensor]], Pass], None]
"""Steps weights, which have their gradients and a state each, in place."""


class Rule(Protocol):
    """A way to step; it keeps nothing itself."""

    @property
    def in_place(self) -> bool:
        """Whether it needs no copy of anything, however much it steps in one go."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors in its state of each parameter."""
        ...

    def start(self, tensor: Tensor, *, fused: bool) -> dict[str, Tensor]:
        """The state of a tensor before its first update."""
        ...

    def step(self, update: Update) -> None:
        """Makes an update."""
        ...


@dataclass(frozen=True)
class AdamW:
    """AdamW (arXiv:1711.05101). Where beta1 is 0, the first moment is the gradient itself, and is not kept.

    Args:
        moments: names of those that are kept.
        eight_bits: whether they are kept in eight bits.
    """

    moments: tuple[str, ...]
    eight_bits: bool = False

    @property
    def in_place(self) -> bool:
        return not self.eight_bits

    @property
    def names(self) -> tuple[str, ...]:
        ends = (CODES, SCALES) if self.eight_bits else ("",)
        return ("step", *(name + end for name in self.moments for end in ends))

    def start(self, tensor: Tensor, *, fused: bool) -> dict[str, Tensor]:
        state = {"step": torch.zeros((), device=tensor.device if fused else None)}
        for name in self.moments:
            state |= eight_bits.start(name, tensor) if self.eight_bits else {name: _zeros(tensor)}
        return state

    def step(self, update: Update) -> None:
        kept = [Blocks(name, update.states) for name in self.moments] if self.eight_bits else []
        moments = [blocks.values for blocks in kept] or [update.state(name) for name in self.moments]
        first = moments[0] if len(moments) == 2 else update.gradients
        own = [unit.place is None for unit in update.units]
        steps = [s["step"] if whole else s["step"].clone() for s, whole in zip(update.states, own, strict=True)]
        _adamw(update, first, moments[-1], steps)
        for state, step in zip(update.states, steps, strict=True):
            state["step"] = step  # shared, since parts of one tensor are stepped together
        for blocks in kept:
            blocks.keep(update.rng(), blocked=update.blocked)


@dataclass(frozen=True)
class Muon:
    """Muon (arXiv:2502.16982): the momentum's nearest orthogonal matrix, as long as an update of AdamW would be."""

    in_place = False
    names = ("momentum_buffer",)

    def start(self, tensor: Tensor, *, fused: bool) -> dict[str, Tensor]:
        return {"momentum_buffer": _zeros(tensor)}

    def step(self, update: Update) -> None:
        weights, gradients, momenta = (
            [tensor.view(len(tensor), -1) for tensor in tensors]
            for tensors in (update.weights, update.gradients, update.state("momentum_buffer"))
        )
        before = None if update.blocked is None else [tensor.clone() for tensor in (*weights, *momenta)]
        known = {name: update.settings[name] for name in ("lr", "weight_decay", "momentum")}
        muon = torch.optim.Muon(weights, adjust_lr_fn="match_rms_adamw", **known)
        for weight, gradient, momentum in zip(weights, gradients, momenta, strict=True):
            weight.grad = gradient
            muon.state[weight] = {"momentum_buffer": momentum}
        muon.step()
        for weight in weights:
            weight.grad = None
        if before is not None and update.blocked is not None:
            for tensor, old in zip((*weights, *momenta), before, strict=True):
                tensor.copy_(torch.where(update.blocked.bool(), old, tensor))


def rules_of(name: RuleName, betas: tuple[float, float], parts: Owned) -> list[tuple[Rule, list[Unit]]]:
    """The update rules of an optimizer, each with the parameters that it steps; every parameter belongs to one."""
    moments = ("exp_avg", "exp_avg_sq") if betas[0] else ("exp_avg_sq",)
    plain, wholes = AdamW(moments), [Unit(index) for index in range(len(parts.tensors))]
    if name == "adamw":
        return [(plain, wholes)]
    if name == "adamw8bit":
        large = [unit for unit in wholes if parts.tensors[unit.tensor].numel() >= LEAST]
        small = [unit for unit in wholes if parts.tensors[unit.tensor].numel() < LEAST]
        return [(AdamW(moments, eight_bits=True), large), (plain, small)]
    hidden = set(hidden_matrices(parts))
    units = {
        name: Unit(place.tensor, None if parts.tensors[place.tensor].shape == place.shape else place)
        for name, place in parts.places.items()
    }
    return [
        (Muon(), [unit for name, unit in units.items() if name in hidden]),
        (plain, [unit for name, unit in units.items() if name not in hidden]),
    ]


def hidden_matrices(parts: Owned) -> list[str]:
    """Names of the weight matrices inside stacks of blocks, which Muon steps.

    Layers that read the sample, the time or the text, and the output layer, are in no stack and so not among them.
    """

    def is_hidden(name: str, shape: torch.Size) -> bool:
        stacked = any(step.isdigit() for step in name.split("."))
        return stacked and len(shape) >= 2 and min(shape[0], shape[1:].numel()) > 1

    return [name for name, place in parts.places.items() if is_hidden(name, place.shape)]


def _adamw(update: Update, first: list[Tensor], second: list[Tensor], steps: list[Tensor]) -> None:
    settings = update.settings
    beta1, beta2 = settings["betas"]
    adamw(
        update.weights,
        update.gradients,
        first,
        second,
        [],
        steps,
        fused=settings["fused"],
        found_inf=update.blocked,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        eps=settings["eps"],
        maximize=False,
    )


def _zeros(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
