"""An optimizer over tensors in any dtype: rules step float32 numbers, which halved weights are made from and to."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..errors import CheckpointError
from ..models.casting import HALF
from ..models.masters import assign, gathered, in_buckets, is_halved, low_of, values_of
from ..models.owned import Owned
from ..seeds import seed_of, stream
from .rules import AdamW, Kernel, Pass, Rule, RuleName, Unit, Update, rules_of


@dataclass(frozen=True)
class Bucket:
    """Units that one rule steps in one go, all of them halved weights or none.

    Args:
        has_kernel: whether a kernel of our own does on a GPU what else takes passes over copies in float32.
    """

    rule: Rule
    units: tuple[Unit, ...]
    halved: bool
    has_kernel: bool = False


class Stepper(torch.optim.Optimizer):
    """Steps what a module trains.

    Attributes:
        found_inf: on the device; where it is 1, the next step changes nothing. None for a step in any case.
        factor: what gradients in half precision are multiplied by when they are read; None for 1.
        position: of the next step in the run, for what is rounded by chance.

    Args:
        parts: what is trained.
        rule: name of how it is stepped.
        settings: lr, betas, eps, weight_decay, momentum, and whether kernels are `fused`.
    """

    def __init__(self, parts: Owned, rule: RuleName, settings: dict[str, Any]) -> None:
        super().__init__(list(parts.tensors), settings)
        self.found_inf: Tensor | None = None
        self.factor: Tensor | None = None
        self.position: tuple[int | str, ...] = ()
        self._tensors = list(parts.tensors)
        rules = rules_of(rule, settings["betas"], parts)
        self._buckets = {one: [*_in_buckets(one, units, self._tensors)] for one, units in rules}
        self._rules: list[dict[Rule, None]] = [{} for _ in self._tensors]
        for one, units in rules:
            for unit in units:
                self._rules[unit.tensor][one] = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every tensor that has a gradient."""
        device = self._tensors[0].device
        rng, kernel = cache(partial(_stream, device, self.position)), kernel_on(device)
        for rule, buckets in self._buckets.items():
            found = [(bucket, units) for bucket in buckets if (units := self._with_gradients(bucket.units))]
            tensors = {unit.tensor: self._tensors[unit.tensor] for _, units in found for unit in units}
            self._start(rule, tensors.values())
            if kernel is not None:
                self._by_kernel(kernel, [unit for bucket, units in found if bucket.has_kernel for unit in units])
            for bucket, units in found:
                if kernel is None or not bucket.has_kernel:
                    self._in_passes(bucket, units, rng)
            for tensor in tensors.values():
                increment_version(tensor)  # kernels write past PyTorch's count of writes, which copies go by

    def to_come(self) -> int:
        """Bytes that the states will have on the device once every tensor was stepped, and have not yet."""
        fused, missing = self.defaults["fused"], 0
        for index, tensor in enumerate(self._tensors):
            like = torch.empty_like(tensor, device="meta")
            states = {name: x for rule in self._rules[index] for name, x in rule.start(like, fused=fused).items()}
            held = self.state.get(tensor, {})
            missing += sum(value.nbytes for name, value in states.items() if value.is_meta and name not in held)
        return missing

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state; entries that only another version kept are dropped.

        Raises:
            CheckpointError: what a rule keeps of a tensor is there in part; nothing has changed.
        """
        self._check_whole(state_dict["state"])
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            for name in group.keys() - {*self.defaults, "params"}:
                del group[name]
        for index, tensor in enumerate(self._tensors):
            state = self.state.get(tensor, {})
            for name in state.keys() - {name for rule in self._rules[index] for name in rule.names}:
                del state[name]

    def _check_whole(self, states: Mapping[int, Mapping[str, Any]]) -> None:
        """Check that every tensor with a state has all that its rule keeps, or if two rules share it, one of them."""
        for index, state in states.items():
            kept = [set(one.names) for one in self._rules[index]]
            whole = [names for names in kept if names <= state.keys()]
            partly = set().union(*kept) & state.keys() - {"step"} - set().union(*whole)
            if state and (partly or not whole):
                lacking = sorted(set().union(*kept) - state.keys())
                raise CheckpointError(
                    f"the optimizer state in the checkpoint lacks {', '.join(lacking)} of tensor {index} (it has "
                    f"{', '.join(sorted(state))}): another version wrote it, or it was edited; use another checkpoint, "
                    "or start in another output folder"
                )

    def _with_gradients(self, units: Sequence[Unit]) -> list[Unit]:
        return [unit for unit in units if self._tensors[unit.tensor].grad is not None]

    def _start(self, rule: Rule, tensors: Iterable[Tensor]) -> None:
        """Initialises the state of tensors that the rule has not stepped yet."""
        names = {*rule.names}
        for tensor in tensors:
            state = self.state[tensor]
            if not state.keys() >= names:
                state.update(rule.start(tensor, fused=self.defaults["fused"]))

    def _by_kernel(self, kernel: Kernel, units: Sequence[Unit]) -> None:
        """The update in few launches: without copies in float32, all tensors are stepped at once."""
        if not units:
            return
        tensors = [self._tensors[unit.tensor] for unit in units]
        update = Pass(
            self.param_groups[0],
            seed=seed_of(*self.position),
            numbers=[unit.tensor for unit in units],
            factor=self.factor,
            blocked=self.found_inf,
        )
        kernel(tensors, [self.state[tensor] for tensor in tensors], update)

    def _in_passes(self, bucket: Bucket, units: Sequence[Unit], rng: Callable[[], torch.Generator | None]) -> None:
        """The update as operations of PyTorch on float32 numbers, which halved weights are made from."""
        tensors = {unit.tensor: self._tensors[unit.tensor] for unit in units}
        owners = [*tensors.values()]
        weights = dict(zip(tensors, values_of(owners), strict=True))
        gradients = dict(zip(tensors, self._gradients(owners), strict=True))
        bucket.rule.step(
            Update(
                weights=[unit.part(weights[unit.tensor]) for unit in units],
                gradients=[unit.part(gradients[unit.tensor]) for unit in units],
                states=[self.state[tensors[unit.tensor]] for unit in units],
                units=units,
                settings=self.param_groups[0],
                blocked=self.found_inf,
                rng=rng,
            )
        )
        if bucket.halved:
            chance = None if all(low_of(tensor) is not None for tensor in owners) else rng()
            assign(owners, [*weights.values()], rng=chance)

    def _gradients(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The gradients in float32; those in half precision are clipped here, which saves rounding them once more."""
        found = [tensor.grad for tensor in tensors if tensor.grad is not None]
        if found[0].dtype not in HALF:
            return found
        flat, parts = gathered(found, torch.float32)
        if self.factor is not None:
            flat.mul_(self.factor)
        return parts


def kernel_on(device: torch.device) -> Kernel | None:
    """The kernel of our own for AdamW; None where there is no GPU, or none of Triton, which it is written in."""
    if device.type != "cuda":
        return None
    try:
        from .kernels import step
    except ImportError:
        return None
    return step


def _stream(device: torch.device, position: tuple[int | str, ...]) -> torch.Generator | None:
    """The random stream of a position; None on the meta device, where nothing can be drawn."""
    return None if device.type == "meta" else stream(device, *position)


def _in_buckets(rule: Rule, units: Sequence[Unit], tensors: Sequence[Tensor]) -> Iterator[Bucket]:
    """Divides units into buckets: one for those that need no copies, several of limited size for all others."""
    halved = [unit for unit in units if is_halved(tensors[unit.tensor])]
    plain = [unit for unit in units if not is_halved(tensors[unit.tensor])]
    if plain and rule.in_place:
        yield Bucket(rule, tuple(plain), halved=False)
    for rest in (halved, [] if rule.in_place else plain):
        for run in in_buckets(rest, lambda unit: tensors[unit.tensor]):
            whole = all(unit.place is None and tensors[unit.tensor].is_contiguous() for unit in run)
            yield Bucket(rule, tuple(run), halved=rest is halved, has_kernel=whole and isinstance(rule, AdamW))
